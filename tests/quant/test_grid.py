"""The grid of weights, by hand and against a slow restatement."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.quant.grid import BITS, Codes, output_axis, quantize, scales, snap


def nearest(row, scale, most):
    """Codes of the sizes: ties to even, but never 0 for what lives."""
    return [min(max(round(abs(w) / scale), 1), most) if w else 0 for w in row]


def leading_bits(scale):
    """What is rounded for bfloat16: the eight leading bits, as a number from 128 to 256, and what they count."""
    share, exponent = math.frexp(scale)
    return share * 256, 2.0 ** (exponent - 8)


def restated(row, bits):
    """Scale and codes of a row by Python's arithmetic, and every quotient that was rounded."""
    most = min(2 ** (bits - 1), 127)
    live = [abs(w) for w in row if w]
    scale, tried = (max(live) / most if live else 1.0), []
    for _ in range(2 if bits <= 3 and live else 0):
        tried += [abs(w) / scale for w in row]
        codes = nearest(row, scale, most)
        scale = sum(abs(w) * c for w, c in zip(row, codes, strict=True)) / sum(c * c for c in codes)
    leading, unit = leading_bits(scale)
    scale = round(leading) * unit
    tried += [leading, *(abs(w) / scale for w in row)]
    return [int(math.copysign(c, w)) for w, c in zip(row, nearest(row, scale, most), strict=True)], scale, tried


weights = st.one_of(st.just(0.0), st.floats(-100, 100, width=32).filter(lambda w: abs(w) > 1e-6))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(weights, min_size=4, max_size=4), min_size=1, max_size=3), st.sampled_from(BITS))
def test_codes_are_those_of_a_slow_restatement_and_zero_only_where_weights_are(rows, bits):
    weight = torch.tensor(rows)
    found = quantize(weight, bits)
    assert torch.equal(found.codes == 0, weight == 0)
    for row, codes, scale in zip(weight.tolist(), found.codes.tolist(), found.scale.tolist(), strict=True):
        expected, exact, tried = restated(row, bits)
        if not any(abs(quotient % 1 - 0.5) < 1e-4 for quotient in tried):  # else float32 may round to the other side
            assert codes == expected
            assert scale == exact


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(weights, min_size=4, max_size=4), min_size=1, max_size=3), st.sampled_from(BITS))
def test_a_weight_on_its_grid_is_code_times_scale_and_stays_where_it_is(rows, bits):
    weight = torch.tensor(rows)
    shown, work = weight.clone(), torch.empty_like(weight)
    snap(shown, bits, 0, work)
    assert torch.equal(shown, quantize(weight, bits).weight())
    again = quantize(shown, bits).weight()
    assert torch.allclose(again, shown, rtol=1e-5)
    assert bits <= 3 or torch.equal(again, shown)


@settings(max_examples=100, deadline=None)
@given(st.lists(weights, min_size=6, max_size=6).filter(any), st.sampled_from([2, 3]))
def test_few_bits_are_fitted_at_least_as_closely_as_by_the_largest_weight(row, bits):
    weight, most = torch.tensor([row]), 2 ** (bits - 1)
    plain = torch.tensor(nearest(row, max(map(abs, row)) / most, most)) * max(map(abs, row)) / most
    error = (quantize(weight, bits).weight() - weight).norm()
    rounded = weight.norm() / 256  # what eight bits of the scale may add
    assert float(error) <= float((plain - weight.abs()).norm() * 1.0001 + rounded) + 1e-6


def test_an_8_bit_row_worked_by_hand():
    found = quantize(torch.tensor([[2.54, -0.05, 0.0, 0.001], [0.0, 0.0, 0.0, 0.0]]), 8)
    assert found.codes.tolist() == [[127, -2, 0, 1], [0, 0, 0, 0]]
    assert found.scale.tolist() == [164 / 8192, 1.0]  # 0.02 is 163.84 / 8192
    found = quantize(torch.tensor([[127 / 64, -2.5 / 64, 0.0, 3.5 / 64]]), 8)
    assert found.codes.tolist() == [[127, -2, 0, 4]]  # to even
    assert found.scale.tolist() == [1 / 64]


def test_two_bits_stand_for_four_values_fitted_twice():
    """From 1.5 with codes 2 and 1 to 7 / 5; there 3 / 1.4 and 1 / 1.4 have the same codes."""
    found = quantize(torch.tensor([[3.0, 0.0, -1.0]]), 2)
    assert found.codes.tolist() == [[2, 0, -1]]
    assert found.scale.tolist() == [179 / 128]  # 1.4 is 179.2 / 128


def test_four_bits_use_all_codes_but_zero():
    weight = torch.tensor([[0.0] + [float(i) for i in range(-8, 9) if i]])
    assert quantize(weight, 4).codes.tolist() == [[int(w) for w in weight[0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_float_type_is_put_on_the_same_grid_in_its_own_type(dtype):
    weight = torch.tensor([[1.0, -0.5, 0.0, 0.126]], dtype=dtype)
    codes = quantize(weight, 8)
    snap(weight, 8, 0, torch.empty(1, 4))
    assert weight.dtype is dtype
    assert codes.codes.tolist() == [[127, -64, 0, 16]]  # 63.5 to even, 16.0
    assert torch.equal(weight, codes.weight().to(dtype))


def test_scales_lie_along_the_output_channels_of_a_transposed_convolution():
    layer = nn.ConvTranspose1d(2, 3, 1, bias=False)
    axis = output_axis(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0], [10.0], [0.0]], [[-127.0], [1.0], [0.0]]]))
    found = quantize(layer.weight.detach(), 8, axis)
    assert found.scale.tolist() == [1.0, 161 / 2048, 1.0]  # 10 / 127 is 161.26 / 2048
    assert found.codes.flatten().tolist() == [1, 127, 0, -127, 13, 0]
    assert torch.equal(found.weight()[1, 0, 0], torch.tensor(-127.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(torch.tensor([[1.0, bad]]), 8)


def test_the_smallest_and_largest_floats_keep_finite_scales():
    tiny, huge = torch.tensor([[1e-45, 0.0]]), torch.tensor([[3.4e38, -1.0]])
    assert scales(tiny, 8).item() > 0
    assert quantize(tiny, 8).codes.tolist() == [[1, 0]]
    assert quantize(huge, 8).codes.tolist() == [[127, -1]]
    assert quantize(huge, 8).weight().isfinite().all()
    most = torch.finfo(torch.float32).max
    assert quantize(torch.tensor([[most, -1.0]]), 4).weight()[0, 0] == most  # the next short scale is too large


def test_codes_know_their_axis():
    codes = Codes(torch.ones(2, 2, dtype=torch.int8), torch.tensor([1.0, 3.0]), 1, 8)
    assert codes.weight().tolist() == [[1.0, 3.0], [1.0, 3.0]]
