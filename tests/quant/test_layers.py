"""Which layers are quantized, with how many bits, and what is remembered of a model."""

import gc

import pytest
import torch
from torch import nn

from lightning_sparse.core.probe import Probe
from lightning_sparse.quant.bits import choose_bits
from lightning_sparse.quant.layers import candidates, fixed_bits
from lightning_sparse.quant.quantization import Layer, Quantization, Range, remember, remembered, within


def test_layers_of_every_kind():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),
            "transposed": nn.ConvTranspose1d(4, 2, 3),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "norm": nn.LayerNorm(4),
            "bilinear": nn.Bilinear(2, 2, 2),
        }
    )
    found = candidates(net)
    assert list(found.modules) == ["linear", "depthwise", "transposed", "frozen"]
    assert found.left == {"bilinear.weight": "Bilinear is neither a Linear layer nor a convolution"}


def test_a_weight_of_two_layers_is_one_layer():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert list(candidates(net).modules) == ["0"]


def test_include_and_exclude_name_what_stays():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    found = candidates(net, include=["0", "1"], exclude=["1.weight"])
    assert list(found.modules) == ["0"]
    assert found.left == {"1.weight": "exclude= names it", "2.weight": "include= does not name it"}


def test_the_first_glob_that_fits_counts():
    bits, left = fixed_bits(["a.0", "a.1", "b"], {"a.1": None, "a.*": 3})
    assert bits == {"a.0": 3, "b": 8}
    assert list(left) == ["a.1.weight"]


def probe() -> Probe:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        net[2].weight.mul_(1e-3)  # hardly matters
    return Probe(net, [torch.randn(4, 8) for _ in range(8)], lambda model, x: model(x).square().mean())


@pytest.mark.parametrize("average", [2.0, 2.7, 4.0, 6.5])
def test_bits_keep_to_their_average(average):
    found = choose_bits(probe(), ["0", "2", "4"], avg_bits=average)
    live = {"0": 256, "2": 512, "4": 32}
    assert sum(found[name] * n for name, n in live.items()) <= average * 800
    assert average < 2.5 or found["2"] <= min(found["0"], found["4"])


def test_bits_keep_to_bytes():
    """By hand: dense, so positions cost nothing; 4 bytes for each of 32 + 16 + 2 scales; a byte for 8 bits."""
    least, most = 800 * 2 / 8 + 200, 800 * 8 / 8 + 200
    assert set(choose_bits(probe(), ["0", "2", "4"], max_bytes=int(most)).values()) == {8}
    assert set(choose_bits(probe(), ["0", "2", "4"], max_bytes=int(least)).values()) == {2}
    with pytest.raises(ValueError, match="the budget is 399, and the fewest bits everywhere need 400"):
        choose_bits(probe(), ["0", "2", "4"], max_bytes=399)


def test_what_is_remembered_goes_with_the_module_and_not_with_copies():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    known = Quantization({"0.0": Layer("0.0", 4, input="0.0:in")}, {"0.0:in": Range(0.1, 3)}, {"x.weight": "so"})
    remember(net, known)
    assert remembered(net) is known
    assert remembered(net[0]) == Quantization({"0": Layer("0", 4, input="0:in")}, {"0:in": Range(0.1, 3)})
    assert remembered(net[0][0]).layers == {"": Layer("", 4, input=":in")}
    twin = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert remembered(twin) is None
    net = twin
    gc.collect()
    assert remembered(net) is None


def test_the_part_of_a_module_takes_grids_of_what_is_outside():
    layers = {
        "a": Layer("a", 8, norm="n", clip=(0.0, None), input="a:in", output="a:out"),
        "b.c": Layer("b.c", 4, norm="b.n", input="a:out", output="b.c:out"),
        "b.d": Layer("b.d", 4, input="b.c:out"),
    }
    ranges = {"a:in": Range(1.0, 0), "a:out": Range(2.0, 0), "b.c:out": Range(3.0, 0)}
    part = within(Quantization(layers, ranges), "b.")
    assert part.layers == {
        "c": Layer("c", 4, norm="n", input="c:in", output="c:out"),
        "d": Layer("d", 4, input="c:out"),
    }
    assert part.ranges == {"c:in": Range(2.0, 0), "c:out": Range(3.0, 0)}
