"""What the tensors of an axis do with its channels, and which axes a user wants whole."""

import pytest
from channels.handmade import NORM, convolutional, graph, normed
from torch import nn

from lightning_sparse.channels.parts import excluded, layout


def roles(model, places):
    return {slot.place.name: slot.role for slot in layout(model, graph(model, c=places))["c"]}


def test_what_a_tensor_does_with_its_channels_is_told_by_its_module():
    model, _ = convolutional()
    expected = {"0.weight": "out", "3.weight": "in", **{f"1.{name}": "norm" for name in NORM}}
    assert roles(model, normed("0", "1", "3")) == expected
    model = nn.ModuleList([nn.ConvTranspose1d(4, 4, 1), nn.Embedding(5, 4), nn.PReLU(4), nn.LayerNorm(4)])
    places = ["0.weight:0", "1.weight:1", "2.weight:0", "3.weight:0", "0.bias:0"]
    expected = {"0.weight": "in", "1.weight": "out", "2.weight": "other", "3.weight": "norm", "0.bias": "bias"}
    assert roles(model, places) == expected
    assert roles(model, ["0.weight:1"]) == {"0.weight": "out"}
    assert roles(nn.ModuleList([nn.ConvTranspose1d(4, 4, 1, groups=4)]), ["0.weight:0"]) == {"0.weight": "out"}
    assert roles(nn.ModuleList([nn.MultiheadAttention(4, 2)]), ["0.in_proj_weight:1"]) == {"0.in_proj_weight": "in"}


def test_parametrized_weights_keep_the_role_of_their_layer():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 2))
    name = "0.parametrizations.weight.original1"
    assert roles(model, [f"{name}:0", "1.weight:1"]) == {name: "out", "1.weight": "in"}
    found = graph(model, c=[f"{name}:0", "1.weight:1"])
    assert excluded(model, found, ["0"]) == {"c": "excluded by name"}


def test_excluding_a_layer_keeps_what_it_produces_not_what_it_reads():
    model, found = convolutional()
    for glob in ("0", "0.weight", "1", "[01]*"):
        assert excluded(model, found, [glob]) == {"c": "excluded by name"}
    assert excluded(model, found, ["3"]) == {}
    with pytest.raises(ValueError, match=r"\['9'\] matches no parameter; candidates: 0.weight, 1.weight"):
        excluded(model, found, ["9", "0"])
