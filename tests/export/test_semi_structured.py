"""2:4 weights for GPUs. No GPU is needed here: what compresses a weight is replaced; tests/gpu has the real one."""

import pytest
import torch
from exported import noise
from torch import nn

from lightning_sparse.export import semi_structured, to_semi_structured


def model():
    """Three Linear layers: two of four, dense, and of a size that PyTorch refuses."""
    net = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64), nn.Linear(64, 5))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.view(-1, 4)[:, 2:] = 0
    return net


@pytest.fixture
def pretended(monkeypatch):
    """A stand-in for the GPU: weights stay dense on the CPU, sizes are refused as PyTorch does."""

    def compress(weight):
        if weight.shape[0] % 32 or weight.shape[1] % 64:
            raise RuntimeError("Error original_tensor.shape is not supported!\nmore")
        return weight.clone()

    monkeypatch.setattr(semi_structured, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(semi_structured, "_compress", compress)


def test_without_a_gpu_it_says_what_it_needs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU of compute capability 8\.0 or newer"):
        to_semi_structured(model(), noise(3, 64))


def test_layers_with_the_pattern_are_compressed_and_others_named(pretended):
    net = model().train()
    found = to_semi_structured(net, noise(3, 64), dtype="bfloat16")
    assert found.layers == ("0",)
    assert found.left == {
        "1": "more than two of some four weights are not zero", "2": "Error original_tensor.shape is not supported!",
    }  # fmt: skip
    assert found.module[0].weight.dtype == torch.bfloat16
    assert found.agreement.error < 0.05
    assert net.training
    assert net[0].weight.dtype == torch.float32


def test_a_model_without_the_pattern_is_refused_with_the_reasons(pretended):
    with pytest.raises(ValueError, match=r"(?s)no layer can be compressed.*1: more than two"):
        to_semi_structured(nn.Sequential(nn.Identity(), nn.Linear(64, 32)), noise(3, 64))


def test_an_answer_that_is_another_is_an_error(pretended, monkeypatch):
    monkeypatch.setattr(semi_structured, "_compress", lambda weight: weight.roll(1, 1))
    with pytest.raises(ValueError, match="the GPU and PyTorch disagree"):
        to_semi_structured(nn.Sequential(model()[0]), noise(3, 64))


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="dtype must be 'float16' or 'bfloat16', got 'int8'"):
        to_semi_structured(model(), noise(3, 64), dtype="int8")
