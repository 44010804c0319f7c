"""Where activations are quantized, found in models whose structure is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sparse.quant.quantization import Layer, Quantization, Range
from lightning_sparse.quant.sites import find

IMAGE = torch.zeros(1, 2, 8, 8)


def conv(i=2, o=2, **how):
    return nn.Conv2d(i, o, 3, padding=1, **how)


class Written(nn.Module):
    """A model whose forward is a function of itself and its input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def layers(model, x=IMAGE, **how):
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return find(model, lambda: model(x), {n: 8 for n, m in model.named_modules() if isinstance(m, kinds)}, **how)


def test_a_norm_and_a_relu_belong_to_the_convolution_before_them():
    found = layers(Written(lambda m, x: F.relu(m.norm(m.conv(x))), conv=conv(), norm=nn.BatchNorm2d(2)))
    assert found["conv"] == Layer("conv", 8, "norm", (0.0, None), "conv:in", "conv:out")


@pytest.mark.parametrize(
    ("run", "norm", "clip"),
    [
        (lambda m, x: m.norm(y := m.conv(x)) + y, None, None),  # used beside the norm
        (lambda m, x: m.norm(m.conv(x) * 2), None, None),
        (lambda m, x: m.norm(F.relu(m.conv(x))), None, (0.0, None)),  # the relu stands before the norm
        (lambda m, x: F.relu(y := m.norm(m.conv(x))) + y, "norm", None),
        (lambda m, x: F.relu6(m.norm(m.conv(x))), "norm", (0.0, 6.0)),
        (lambda m, x: m.norm(m.conv(x)).relu_(), "norm", (0.0, None)),
        (lambda m, x: F.relu(y := m.norm(m.conv(x))) + F.relu6(y), "norm", None),  # two kinds of clipping
        (lambda m, x: F.hardtanh(m.norm(m.conv(x)), 0.5, 1.0), "norm", None),  # 0 does not stay 0
        (lambda m, x: m.norm(m.conv(x)) + m.norm(x), None, None),  # the norm has another use
    ],
)
def test_only_what_is_surely_folded_is(run, norm, clip):
    found = layers(Written(run, conv=conv(), norm=nn.BatchNorm2d(2)))["conv"]
    assert (found.norm, found.clip) == (norm, clip)


def test_a_norm_without_statistics_is_not_folded():
    found = layers(nn.Sequential(conv(), nn.BatchNorm2d(2, track_running_stats=False)))["0"]
    assert found.norm is None


def test_what_comes_unchanged_from_a_convolution_is_on_its_grid_already():
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), conv(), nn.Flatten(), nn.Linear(32, 3))
    found = layers(model)
    assert [found[n].input for n in ("0", "4", "6")] == ["0:in", "0:out", "4:out"]
    assert [found[n].output for n in ("0", "4", "6")] == ["0:out", "4:out", None]


def test_what_was_computed_with_in_between_gets_a_range_of_its_own():
    model = nn.Sequential(conv(), nn.AvgPool2d(2), conv(), nn.GELU(), conv())
    assert [layer.input for layer in layers(model).values()] == ["0:in", "2:in", "4:in"]


def test_adding_in_place_ends_a_grid_and_what_is_clipped():
    def run(m, x):
        y = m.a(x)
        y += x
        return m.b(F.relu(y))

    found = layers(Written(run, a=conv(), b=conv()))
    assert found["a"].clip is None
    assert found["b"].input == "b:in"


def test_layers_that_get_the_same_tensor_share_its_range_until_it_is_written():
    def run(m, x):
        together = m.q(x) + m.k(x)
        x.add_(1)
        return together + m.v(x)

    linear = [nn.Linear(8, 8) for _ in range(3)]
    found = layers(Written(run, q=linear[0], k=linear[1], v=linear[2]), torch.zeros(2, 8))
    assert [found[n].input for n in "qkv"] == ["q:in", "q:in", "v:in"]


def test_a_layer_called_twice_has_one_range_for_both_and_shares_it_only_where_both_agree():
    found = layers(Written(lambda m, x: m.b(m.b(m.a(x))), a=conv(), b=conv()))
    assert found["b"].input == "b:in"
    found = layers(Written(lambda m, x: m.b(y := m.a(x)) + m.b(y), a=conv(), b=conv()))
    assert found["b"].input == "a:out"


def test_layers_that_are_not_called_and_activations_that_are_not_wanted_are_left_out():
    model = Written(lambda m, x: F.linear(x, m.a.weight) + m.b(x), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    assert layers(model, torch.zeros(1, 8), activations=False) == {"b": Layer("b", 8)}


def test_linear_outputs_stay_in_float():
    found = layers(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 8))
    assert found["0"] == Layer("0", 8, "1", None, "0:in", None)
    assert found["3"].input == "3:in"


def test_the_model_is_afterwards_as_before():
    model = nn.Sequential(conv(), nn.BatchNorm2d(2), nn.Dropout())
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    layers(model, torch.randn(2, 2, 8, 8))
    torch.set_rng_state(drawn)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_saved_quantization_comes_back_and_anything_else_is_refused():
    whole = Quantization({"a": Layer("a", 4, "n", (0.0, None), "a:in", "a:out")}, {"a:in": Range(0.5, 3)}, {"b": "?"})
    assert Quantization.from_state(whole.state_dict()) == whole
    with pytest.raises(ValueError, match="no saved quantization"):
        Quantization.from_state({"layers": {"a": {"bits": 8}}, "ranges": {}, "left": {}})
    state = whole.state_dict()
    state["layers"]["a"]["bits"] = 64
    state["ranges"]["a:in"]["scale"] = float("nan")
    with pytest.raises(ValueError, match=r"2 problems\n.*64 bits\n.*scale nan"):
        Quantization.from_state(state)


def test_a_model_without_the_layer_or_with_nan_has_no_codes():
    wrong = Quantization({"0": Layer("0", 8), "7": Layer("7", 8)})
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"2 problems\n.*0\.weight has NaN.*\n.*no weight 7\.weight"):
        wrong.codes(model)
