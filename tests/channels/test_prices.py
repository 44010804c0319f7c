"""FLOPs and parameters of a choice are those of the smaller model, and targets in them come as near as can be."""

from itertools import product

import pytest
import torch
from channels.handmade import graph, normed
from torch import nn

from lightning_sparse.channels.atoms import Atom, Graph, Place
from lightning_sparse.channels.choose import choose
from lightning_sparse.channels.options import Choice
from lightning_sparse.channels.prices import Prices


def chain(widths):
    """Convolutions and a Linear with these numbers of channels, a BatchNorm after the first."""
    a, b, c = widths
    model = nn.ModuleList(
        [nn.Conv2d(3, a, 3, bias=False), nn.BatchNorm2d(a), nn.Conv2d(a, b, 1), nn.Linear(4 * b, c), nn.Linear(c, 2)]
    )
    atoms = {
        "a": normed("0", "1", "2"),
        "b": ["2.weight:0", "2.bias:0", "3.weight:1:4"],
        "c": ["3.weight:0", "3.bias:0", "4.weight:1"],
    }
    return model, atoms


def costs_of(widths):
    """FLOPs of convolutions on 5 pixels and Linears on 1, and all parameters: of a model of that size."""
    model, _ = chain(widths)
    flops = {"0.weight": 2.0 * 5 * model[0].weight.numel(), "2.weight": 2.0 * 5 * model[2].weight.numel()}
    flops |= {f"{i}.weight": 2.0 * model[i].weight.numel() for i in (3, 4)}
    return flops, sum(p.numel() for p in model.parameters())


SIZES = (6, 5, 7)


def traced():
    model, atoms = chain(SIZES)
    found = graph(model, costs_of(SIZES)[0], **atoms)
    return found, {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_parameters_and_flops_are_those_of_a_model_that_was_made_smaller():
    prices = Prices(*traced())
    for widths in product((1, 4, 6), (1, 5), (2, 7)):
        counts = dict(zip("abc", widths, strict=True))
        flops, params = costs_of(widths)
        assert prices.params(counts) == params
        assert prices.flops(counts) == pytest.approx(sum(flops.values()), rel=1e-12)
        assert {name: prices.flops_of(name, counts) for name in flops} == pytest.approx(flops)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("target", ["flops", "params"])
@pytest.mark.parametrize("keep", [0.2, 0.37, 0.5, 0.81])
def test_flops_and_parameters_are_the_nearest_on_the_way_from_nothing_to_everything(scope, target, keep):
    found, sizes = traced()
    generator = torch.Generator().manual_seed(4)
    named = {name: torch.rand(size, generator=generator) for name, size in zip("abc", SIZES, strict=True)}
    kept = choose(found, named, sizes, Choice(keep, scope, target))

    def measure(counts):
        flops, params = costs_of(counts)
        return params if target == "params" else sum(flops.values())

    # all totals of channels, each with the exact choice that the channels' own target makes
    every = [
        tuple(len(v) for v in choose(found, named, sizes, Choice(n / sum(SIZES), scope)).values())
        for n in range(3, sum(SIZES) + 1)
    ]
    want = keep * measure(SIZES)
    nearest = min(abs(measure(counts) - want) for counts in every)
    off = abs(measure(tuple(len(v) for v in kept.values())) - want)
    if scope == "global":
        assert off == pytest.approx(nearest)
    else:  # there, channels' own target moves several axes at once; one at a time comes as near or nearer
        assert off <= nearest + 1e-9


def test_axes_without_scores_stay_whole_and_count_among_the_costs_only():
    found, sizes = traced()
    named = {"a": torch.arange(6.0), "c": torch.arange(7.0)}
    kept = choose(found, named, sizes, Choice(7 / 13, scope="layer"))
    assert {name: len(v) for name, v in kept.items()} == {"a": 3, "c": 4}
    with pytest.raises(ValueError, match=r"keep=0\.1 of the params cannot be met"):
        choose(found, named, sizes, Choice(0.1, target="params"))


def test_a_square_weight_whose_two_dimensions_are_one_axis_shrinks_in_both():
    place = torch.arange(6)[:, None]
    found = Graph((Atom("a", (Place("w", 0, place), Place("w", 1, place)), False),), {}, {"w": 72.0}, {}, {"w": (6, 6)})
    prices = Prices(found, {"w": (6, 6)})
    assert (prices.params({"a": 3}), prices.flops({"a": 2})) == (9, 8.0)
