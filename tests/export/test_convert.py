"""A converted module computes what its integers say, and what training simulated."""

import pytest
import torch
from exported import MODELS, ActiveNorm, Residual, encoder, image, known, lively, noise, simulated
from helpers import same, weights
from torch import nn

from lightning_sparse.channels.quiet import plain_paths
from lightning_sparse.export import convert
from lightning_sparse.export.layers import QuantizedLayer, ToGrid
from lightning_sparse.quant.quantization import Layer, Quantization, Range, remember
from lightning_sparse.quant.quantizer import Quantizer


def net(weight, bias, *more):
    """A Linear layer with these numbers, and what comes after."""
    first = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        first.weight.copy_(torch.tensor(weight))
        first.bias.copy_(torch.tensor(bias))
    return nn.Sequential(first, *more)


def test_a_linear_layer_worked_by_hand():
    # Codes: row 1 has the scale 1/64, so 1.0 is 64; row 2 the scale 1/256.
    # Input (0.26, -1) on the grid of 0.1 with zero point 3: round(2.6) = 3 -> 0.3; -10 is below -3 -> -0.3.
    # Bias: 0.0213 / (0.1 / 64) = 13.632 -> 14 -> 0.021875; the other 0.
    # Row 1: 127 / 64 * 0.3 + 1.0 * -0.3 + 0.021875 = 0.3171875. Row 2: 127 / 256 * -0.3 = -0.148828125.
    model = net([[127 / 64, 1.0], [0.0, 127 / 256]], [0.0213, 0.0])
    small = convert(model, torch.zeros(1, 2), Quantization({"0": Layer("0", 8, input="0:in")}, {"0:in": Range(0.1, 3)}))
    assert small[0].codes.tolist() == [[127, 64], [0, 127]]
    assert small[0].bias_codes.tolist() == [14, 0]
    torch.testing.assert_close(small(torch.tensor([[0.26, -1.0]])), torch.tensor([[0.3171875, -0.148828125]]))


def test_a_batch_norm_with_a_negative_and_a_dead_channel_worked_by_hand():
    # 1x1 convolution 1 -> 3 with weights 1, 2, 3; variance 4 - 0, so gamma / std = 0.5, -1, 0; mean 1; beta 0, 1, 7.
    # x = 2: (2 - 1) * 0.5 = 0.5; (4 - 1) * -1 + 1 = -2 -> ReLU 0; 7.
    conv, norm = nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0.0).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 7.0]))
    norm.running_mean.fill_(1.0), norm.running_var.fill_(4.0)
    model = nn.Sequential(conv, norm, nn.ReLU())
    layer = Layer("0", 8, norm="1", clip=(0.0, None), input="0:in", output="0:out")
    ranges = {"0:in": Range(1 / 64, 0), "0:out": Range(1 / 32, 0)}
    small = convert(model, torch.ones(1, 1, 1, 1), Quantization({"0": layer}, ranges))
    assert small[0].codes.flatten().tolist() == [127, -127, 1]  # of the dead channel only the sign is left
    assert isinstance(small[1], nn.Identity)
    answer = small(torch.full((1, 1, 1, 1), 2.0)).flatten()
    torch.testing.assert_close(answer, torch.tensor([0.5, 0.0, 7.0]))


@pytest.mark.parametrize("act_bits", [8, 4, None])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_was_simulated(name, act_bits):
    make, inputs = MODELS[name]
    torch.manual_seed(1)
    model = lively(make())
    quantization = known(model, inputs, act_bits=act_bits)
    small = convert(model, inputs, quantization)
    assert sum(isinstance(part, QuantizedLayer) for part in small.modules()) == len(quantization.layers) > 0
    with torch.no_grad(), plain_paths():
        expected, answer, floats = simulated(model, quantization, inputs), small(inputs), model(inputs)
    step = max([r.scale for r in quantization.ranges.values()], default=0.0)
    biases = [part.bias_scale.max() for part in small.modules() if getattr(part, "quantized_bias", False)]
    far = (answer - expected).abs() > 1e-5 + 3 * max(biases, default=0.0)  # what rounded biases explain
    assert far.float().mean() < 0.3  # values that were half way between two codes, and what they lead to
    assert (answer - expected).abs().max() < 1e-5 + 2 * step
    assert not torch.allclose(answer, floats, atol=1e-6)  # it is another function than the float module


def test_it_computes_what_the_training_simulation_computes():
    model = lively(Residual())
    x = image(8)
    quantization = known(model, x)
    quantizer = Quantizer(model, quantization.layers)
    quantizer.calibrate([lambda: model(x)])
    with torch.no_grad():
        expected = model(x)
    small = convert(model, x, quantizer.quantization)
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("make", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 1)], ids=["linear", "convolution"])
def test_sums_are_those_of_integers(make):
    torch.manual_seed(2)
    layer = make(5, 3)
    x = torch.randn(4, 5, *(1,) * (layer.weight.ndim - 2))
    model = nn.Sequential(layer)
    quantization = known(model, x)
    small = convert(model, x, quantization)[0]
    place = quantization.ranges["0:in"]
    codes = (x.double() / place.scale).round().long().flatten(1).add(place.zero_point).clamp(0, 255) - place.zero_point
    sums = codes @ small.codes.long().flatten(1).T + small.bias_codes.long()
    expected = sums.double() * (small.scale.double() * place.scale)
    if "0:out" in quantization.ranges:
        out = quantization.ranges["0:out"]
        expected = ((expected / out.scale).round() + out.zero_point).clamp(0, 255).sub(out.zero_point) * out.scale
    torch.testing.assert_close(small(x).flatten(1).double(), expected, rtol=1e-5, atol=1e-6)


def test_grids_end_where_their_bits_and_clips_do():
    x = torch.tensor([-9.0, -0.3, 0.2, 0.9, 9.0])
    # 3 bits, zero point 2: codes 0 ... 7 are -1 ... 2.5. Clipped to 0 ... 1.7: codes 2 ... 5 (1.7 is nearest to 1.5).
    assert ToGrid(Range(0.5, 2, bits=3))(x).tolist() == [-1.0, -0.5, 0.0, 1.0, 2.5]
    assert ToGrid(Range(0.5, 2), (0.0, None))(x).tolist() == [0.0, 0.0, 0.0, 1.0, 9.0]
    assert ToGrid(Range(0.5, 2), (0.0, 1.7), signed=True)(x).tolist() == [0.0, 0.0, 0.0, 1.0, 1.5]


def test_a_norm_that_stays_has_the_grid_behind_it():
    model = lively(nn.Sequential(nn.Conv2d(2, 4, 3), ActiveNorm(4)))
    quantization = known(model, image())
    answer = convert(model, image(), quantization)(image())
    codes = answer / quantization.ranges["0:out"].scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_the_pattern_of_the_integers_is_the_mask():
    torch.manual_seed(3)
    model = lively(Residual(8))
    with torch.no_grad():
        model.bn1.weight[2] = 0.0  # a channel without a voice keeps its zeros too
        masks = {name: torch.rand_like(p) < 0.3 for name, p in model.named_parameters() if p.ndim > 1}
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    quantization = known(model, image())
    small, codes = convert(model, image(), quantization), quantization.codes(model)
    for name, mask in masks.items():
        part = small.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(part.codes != 0, mask), name
        if name != "conv1.weight":
            assert torch.equal(part.codes.abs(), codes[name].codes.abs()), name
    assert torch.equal(small.conv1.codes[2].abs(), masks["conv1.weight"][2].to(torch.int8))


def test_a_bias_that_is_too_large_for_its_scale_is_said_by_a_larger_one():
    # step 1e-2 * weight scale 1e-12 = 1e-14: a bias of 3 would be 3e14; so the scale becomes 3 / 2**30 / 1e-2.
    model = net([[127e-12, 0.0, -50e-12]], [3.0])
    known_ = Quantization({"0": Layer("0", 8, input="0:in")}, {"0:in": Range(0.01, 0)})
    small = convert(model, torch.ones(1, 3), known_)
    assert small[0].codes.tolist() == [[1, 0, -1]]
    torch.testing.assert_close(small(torch.full((1, 3), 2.0)), torch.tensor([[3.0]]))


def test_the_module_stays_as_it_is_and_so_does_chance():
    model = lively(Residual()).train()
    handle = model.conv1.register_forward_hook(lambda *_: None)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before, hooks = weights(model), dict(model.conv1._forward_hooks)
    quantization = known(model, image())
    chance = torch.get_rng_state()
    small = convert(model, image(), quantization)
    small(image())
    assert same(before, weights(model))
    assert model.training
    assert model.bn.training
    assert not small.training
    assert model.conv1._forward_hooks == hooks
    assert model.stem.weight.grad.eq(1).all()
    assert type(model.conv1) is nn.Conv2d
    assert torch.equal(chance, torch.get_rng_state())
    shared = {p.data_ptr() for p in model.state_dict().values()} & {p.data_ptr() for p in small.state_dict().values()}
    assert not shared
    handle.remove()


def test_what_was_remembered_is_taken_also_through_wrappers():
    model = lively(Residual())
    remember(model, known(model, image()))
    wrapped = torch.compile(model, backend="eager")
    assert torch.equal(convert(model, image())(image()), convert(wrapped, image())(image()))
    parallel = nn.DataParallel(model)
    assert isinstance(convert(parallel, image()), Residual)


def test_a_compiled_part_is_converted_as_it_was_written():
    model = lively(Residual())
    quantization = known(model, image())
    expected = convert(model, image(), quantization)(image())
    model.conv1 = torch.compile(model.conv1, backend="eager")
    assert torch.equal(convert(model, image(), quantization)(image()), expected)


def test_half_precision_and_double_modules_become_float32():
    model = lively(Residual())
    quantization = known(model, image())
    for kind in (torch.float64, torch.bfloat16):
        small = convert(model.to(kind), image().to(kind), quantization)
        assert {p.dtype for p in small.parameters()} | {small(image()).dtype} == {torch.float32}


def test_layers_still_answer_for_what_they_are():
    small = convert(model := lively(Residual()), image(), known(model, image()))
    assert (small.conv1.out_channels, small.head.in_features) == (4, 4)
    assert small.head.weight.shape == model.head.weight.shape
    torch.testing.assert_close(small.head.bias, model.head.bias.detach(), rtol=0, atol=1e-3)
    with pytest.raises(AttributeError):
        small.conv1.nothing_of_the_kind  # noqa: B018


def test_for_executorch_activations_are_signed_biases_float_and_every_output_on_a_grid():
    model = lively(Residual())
    quantization = known(model, image())
    small = convert(model, image(), quantization, target="executorch")
    parts = [part for part in small.modules() if isinstance(part, QuantizedLayer)]
    assert not any(part.quantized_bias for part in parts)
    assert all(part.leave is not None for part in parts)
    assert {part.entry.dtype for part in parts} == {torch.int8}
    assert small.conv1.entry.zero_point == quantization.ranges["stem:out"].zero_point - 128
    expected = convert(model, image(), quantization)(image())
    step = small.head.leave.scale
    assert (small(image()) - expected).abs().max() <= step


def test_attention_stays_in_float_and_its_feed_forward_does_not():
    model, x = encoder().eval(), torch.randn(2, 5, 8)
    small = convert(model, x, known(model, x))
    assert {name for name, part in small.named_modules() if isinstance(part, QuantizedLayer)} == {
        "0.layers.0.linear1", "0.layers.0.linear2", "0.layers.1.linear1", "0.layers.1.linear2", "1",
    }  # fmt: skip


def test_the_fused_path_of_transformers_does_not_go_past_the_integers():
    model, x = encoder().eval(), noise(2, 5, 8)
    small = convert(model, x, known(model, x))
    with torch.no_grad(), plain_paths():
        expected = small(x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-6)


def test_hooks_of_a_layer_still_run():
    model = net([[1.0, 2.0]], [0.0])
    model[0].register_forward_hook(lambda module, args, out: out + 100)
    small = convert(model, torch.ones(1, 2), Quantization({"0": Layer("0", 8)}))
    assert float(small(torch.ones(1, 2))) > 100


def test_a_module_that_is_one_layer_is_converted_whole():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    small = convert(layer, x, known(layer, x))
    assert isinstance(small, QuantizedLayer)
    assert type(layer) is nn.Linear
