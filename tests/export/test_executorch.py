"""Files for ExecuTorch."""

import pytest
import torch
from exported import Residual, image, known, lively, noise
from torch import nn

from lightning_sparse.export import to_executorch

pytest.importorskip("torch", minversion="2.9")
pytest.importorskip("executorch", exc_type=ImportError)


@pytest.mark.parametrize(
    ("make", "x"),
    [(Residual, image()), (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), noise(5, 6))],
    ids=["residual", "mlp"],
)
def test_executorch_answers_as_pytorch_does(make, x, tmp_path):
    torch.manual_seed(0)
    model = lively(make())
    report = to_executorch(model, tmp_path / "net.pte", x, known(model, x))
    assert report.agreement.error < 0.05
    assert report.size == (tmp_path / "net.pte").stat().st_size


def test_weights_are_a_byte_each_in_the_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))
    report = to_executorch(model, tmp_path / "net.pte", noise(5, 256), known(model, noise(5, 256)))
    assert 256 * 512 + 512 * 64 < report.size < 1.3 * (256 * 512 + 512 * 64)
