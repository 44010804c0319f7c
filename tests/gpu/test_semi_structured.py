"""2:4 weights in the kernels of a CUDA device. Run with `pytest -m gpu tests/gpu` where there is one."""

import pytest
import torch
from exported import noise
from torch import nn

from lightning_sparse.export import to_semi_structured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_compressed_layers_answer_as_the_dense_ones_do(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 10))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.view(-1, 4)[:, 1:3] = 0
    found = to_semi_structured(net, noise(64, 128), dtype=dtype)
    assert found.layers == ("0", "2")
    assert set(found.left) == {"3"}
    assert found.agreement.error < 0.02
    assert type(found.module[0].weight.detach()).__name__.startswith("SparseSemiStructured")
