"""Ranges of activations against a restatement in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sparse.quant.places import _Rounded
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find


def batch(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) + 0.5


def quantized(bits: int = 8) -> tuple[nn.Module, Quantizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3))
    return net, Quantizer(net, find(net, lambda: net(batch(0)), {"0": 8}), act_bits=bits)


def ends(x: torch.Tensor) -> np.ndarray:
    return np.array([x.min(), x.max()], dtype=np.float64)


def by_numpy(low: float, high: float, bits: int) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, int(np.clip(np.rint(-low / scale), 0, 2**bits - 1))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_calibration_averages_and_training_moves_on_by_a_hundredth(bits):
    net, quantizer = quantized(bits)
    net.eval()
    assert quantizer.calibrate([lambda i=i: net(batch(i, 1 + i)) for i in range(3)]) == 3
    expected = np.mean([ends(batch(i, 1 + i)) for i in range(3)], axis=0)
    check(quantizer, expected, bits)
    net(batch(7, 100.0))  # evaluation moves nothing
    check(quantizer, expected, bits)
    net.train()
    for i in range(3, 6):
        net(batch(i, 10.0))
        quantizer.step()
        expected += 0.01 * (ends(batch(i, 10.0)) - expected)
    check(quantizer, expected, bits)
    quantizer.freeze()
    net(batch(9, 100.0))
    check(quantizer, expected, bits)


def check(quantizer: Quantizer, expected: np.ndarray, bits: int) -> None:
    found, (scale, zero) = quantizer.quantization.ranges["0:in"], by_numpy(*expected, bits)
    assert found.bits == bits
    assert found.zero_point == zero
    assert found.scale == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_moves_no_range(bad):
    net, quantizer = quantized()
    broken = batch(5)
    broken[0, 0] = bad
    net.eval()
    quantizer.calibrate([lambda: net(batch(1)), lambda: net(broken), lambda: net(batch(2))])
    expected = np.mean([ends(batch(1)), ends(batch(2))], axis=0)
    check(quantizer, expected, 8)
    assert quantizer.odd == 1
    net.train()
    net(broken)
    quantizer.step()
    check(quantizer, expected, 8)
    assert quantizer.odd == 2
    net(batch(3))
    quantizer.step()
    check(quantizer, expected + 0.01 * (ends(batch(3)) - expected), 8)


def test_activations_of_one_sign_keep_zero_in_their_range():
    net, quantizer = quantized()
    net.eval()
    quantizer.calibrate([lambda: net(batch(0).abs() + 5)])
    check(quantizer, ends(batch(0).abs() + 5) * [0, 1], 8)


def test_a_place_that_only_saw_what_is_not_finite_stays_in_float():
    net, quantizer = quantized()
    net.eval()
    quantizer.calibrate([lambda: net(batch(0) * float("nan"))])
    assert quantizer.unseen() == ["0:in"]
    layer = quantizer.quantization.layers["0"]
    assert layer.input is None
    assert quantizer.quantization.ranges == {}
    quantizer.freeze()
    quantizer.restore()
    with torch.no_grad():
        net[0].weight.copy_(127 / 128 * torch.eye(3, 4))  # on the grid as it is
    x = batch(1)
    assert torch.equal(net.eval()(x), torch.nn.functional.linear(x, 127 / 128 * torch.eye(3, 4), net[0].bias))


def test_bfloat16_activations_are_quantized_too():
    net, quantizer = quantized()
    net.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantizer.calibrate([lambda: net(batch(0))])
        outputs = nn.Sequential(nn.Identity(), net)(batch(0).bfloat16())
    assert outputs.dtype == torch.bfloat16
    check(quantizer, ends(batch(0)), 8)


def test_a_saved_state_goes_on_bit_for_bit():
    runs = []
    for cut in (False, True):
        net, quantizer = quantized()
        net.eval()
        quantizer.calibrate([lambda net=net: net(batch(0))])
        net.train()
        outputs = []
        for i in range(6):
            if cut and i == 3:
                state = quantizer.state_dict()
                quantizer.detach()
                quantizer = Quantizer(net, quantizer.layers)
                quantizer.load_state_dict(state)
            outputs.append(net(batch(i, 1 + i)))
            quantizer.step()
        runs.append((torch.stack(outputs), quantizer.quantization))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    with pytest.raises(ValueError, match=r"ranges were saved of \['0:in'\], and here are \[\]"):
        Quantizer(net, quantizer.layers, act_bits=None).load_state_dict(state)


@pytest.mark.parametrize("zero", [0, 7, 255])
def test_gradients_pass_up_to_the_edges_of_the_range(zero):
    """Half a step beyond the last codes, which itself is inside; what is one float further is cut."""
    scale, least, most = torch.tensor([0.1]), torch.tensor([-float(zero)]), torch.tensor([255.0 - zero])
    low, high = (least - 0.5) * scale, (most + 0.5) * scale
    out, inward = torch.tensor([-torch.inf]), torch.tensor([torch.inf])
    edges = torch.cat([low, high, torch.nextafter(low, out), torch.nextafter(high, -out), torch.nextafter(low, inward)])
    values = torch.cat([edges, torch.randn(100) * 20, torch.tensor([torch.inf, -torch.inf])]).requires_grad_()
    gradient = torch.randn(len(values))
    _Rounded.apply(values, scale, least, most).backward(gradient)
    inside = (values.detach() >= low) & (values.detach() <= high)
    assert inside[:5].tolist() == [True, True, False, False, True]
    assert torch.equal(values.grad, torch.where(inside, gradient, 0.0))
    assert 0 < int(inside.sum()) < len(values)
