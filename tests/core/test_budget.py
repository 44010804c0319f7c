"""Counts that patterns can have: how they are dealt, what a plan says, what is refused, what stays dense."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse import (
    GMP,
    L0,
    NM,
    STR,
    Block,
    Channel,
    FanIn,
    RigL,
    SparseMomentum,
    Sparsifier,
    Static,
    Unstructured,
    plan,
)
from lightning_sparse.core.algorithm import keep_budget
from lightning_sparse.core.allocation import apportion, deal


def net():
    """(8, 4, 3, 3), (12, 32) and (4, 12): 288, 384 and 48 weights, 720 in all."""
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4))


def live(*args, **settings):
    return [row.live for row in plan(net(), *args, **settings).layers]


@st.composite
def deals(draw):
    n = draw(st.integers(1, 5))
    units = [draw(st.integers(1, 9)) for _ in range(n)]
    lower = [draw(st.integers(0, 3)) * unit for unit in units]
    upper = [lo + draw(st.integers(0, 9)) * unit for lo, unit in zip(lower, units, strict=True)]
    shares = [draw(st.floats(0, 50)) for _ in range(n)]
    return shares, draw(st.integers(sum(lower), sum(upper))), lower, upper, units


@given(deals())
@settings(deadline=None, max_examples=200)
def test_whole_units_are_dealt_within_bounds_and_the_sum_is_near(question):
    _, total, lower, upper, units = question
    counts = deal(*question)
    rows = list(zip(counts, lower, upper, units, strict=True))
    assert all(lo <= count <= hi and count % unit == 0 for count, lo, hi, unit in rows)
    room = [unit for count, _, hi, unit in rows if count < hi]
    assert abs(sum(counts) - total) <= max(units) / 2 or not room
    if len(set(units)) == 1:
        assert abs(sum(counts) - total) <= units[0] / 2


@given(deals())
@settings(deadline=None, max_examples=200)
def test_single_weights_are_dealt_as_they_are_apportioned(question):
    shares, total, _, upper, units = question
    total = min(total, sum(upper))
    assert deal(shares, total, [0] * len(units), upper, [1] * len(units)) == apportion(shares, total, upper)


def test_the_largest_remainders_are_rounded_up_as_long_as_they_fit():
    # floors 8, 20, 6 leave 5: the first has .9 of a unit more, then 1 is left, which is nearer than 2 too many
    assert deal([11.6, 21.0, 6.4], 39, [0] * 3, [99] * 3, [4, 5, 3]) == [12, 20, 6]
    # the same leave 6: of 2 left, one too many is nearer
    assert deal([11.6, 21.0, 7.4], 40, [0] * 3, [99] * 3, [4, 5, 3]) == [12, 20, 9]
    # the same leave 7: the first, and the third fits
    assert deal([11.6, 21.0, 8.4], 41, [0] * 3, [99] * 3, [4, 5, 3]) == [12, 20, 9]
    assert deal([7.0], 7, [0], [99], [4]) == [8]
    assert deal([6.0], 6, [0], [99], [4]) == [4]  # as near as 8, and not above


def test_what_the_bounds_do_not_admit_is_refused():
    with pytest.raises(ValueError, match="cannot share 3 over 1 layers that take 4 to 8"):
        deal([1.0], 3, [4], [8], [4])


def test_n_of_m_counts_exactly_its_share_whatever_the_allocation():
    for allocation in ("erk", "er", "uniform", "global"):
        assert live(None, allocation, pattern=NM(1, 4)) == [72, 96, 12]
    table = plan(net(), 0.5, pattern=NM(2, 4))
    assert [(row.density, row.live) for row in table.layers] == [(0.5, 144), (0.5, 192), (0.5, 24)]
    assert live({"0": 0.5, "*": 0.5}, pattern=NM(2, 4)) == [144, 192, 24]


@pytest.mark.parametrize("pattern", [FanIn(), Block(2, 4), Channel(), Block(4, 1)])
@pytest.mark.parametrize("density", [0.2, 0.35, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_a_plan_has_whole_units_near_each_share_and_near_the_total(pattern, density, allocation):
    units = {FanIn(): [8, 12, 4], Block(2, 4): [8] * 3, Channel(): [36, 32, 12], Block(4, 1): [4] * 3}[pattern]
    free, counts = live(density, allocation), live(density, allocation, pattern=pattern)
    for k, share, unit in zip(counts, free, units, strict=True):
        assert k % unit == 0
        assert abs(k - max(share, unit)) <= 1.5 * unit  # a layer that asks for less than a unit takes from the others
    assert abs(sum(counts) - round(density * 720)) <= max(units) / 2


def test_a_row_of_a_plan_in_units_has_the_density_that_it_counts():
    for row in plan(net(), 0.3, pattern=Channel()).layers:
        assert row.density == row.live / row.size


def test_a_density_for_each_glob_is_rounded_to_units_layer_by_layer():
    # 288 * .3 = 86.4 is 2.4 of 36; 384 * .3 = 115.2 is 3.6 of 32; 48 * .01 is less than one channel
    assert live({"5": 0.01, "*": 0.3}, pattern=Channel()) == [72, 128, 12]


def test_a_density_too_low_for_one_unit_a_layer_names_the_least():
    # 36 + 32 + 12 = 80 of 720 is .1111
    with pytest.raises(ValueError) as caught:
        plan(net(), 0.1, pattern=Channel())
    assert "keeps 72 of 720 weights, too few for what Channel() needs (80 in all)" in str(caught.value)
    assert "the least density that is reachable is 0.1112" in str(caught.value)
    assert live(0.1112, pattern=Channel()) == [36, 32, 12]


def test_a_density_other_than_the_patterns_own_is_refused():
    with pytest.raises(ValueError, match=r"NM\(n=2, m=4\) has density 0\.5, got 0\.3; leave density out"):
        plan(net(), 0.3, pattern=NM(2, 4))
    with pytest.raises(ValueError, match=r"has density 0\.5"):
        Sparsifier(net(), RigL(every=2, stop=8), 0.3, pattern=NM(2, 4))


def test_a_transposed_convolution_is_planned_by_its_outputs():
    # 6 outputs of (8 * 3 =) 24 weights each; stored as (8, 6, 3)
    model = nn.Sequential(nn.ConvTranspose1d(8, 6, 3))
    assert plan(model, 0.5, pattern=Channel()).live == 72
    assert plan(model, 0.5, pattern=FanIn()).live == 72
    assert plan(model, 0.4, pattern=Channel()).live == 48  # 57.6 is 2.4 channels


# ---- Shapes that do not fit


class Odd(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 3))


MAKERS = [lambda m, p: plan(m, None, pattern=p), lambda m, p: Sparsifier(m, Static(), pattern=p)]


@pytest.mark.parametrize("make", MAKERS)
def test_layers_that_do_not_fit_stay_dense_with_one_warning_that_names_them(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make(Odd(), NM(2, 4))
    table = made if hasattr(made, "layers") else made.plan
    assert [row.name for row in table.layers] == ["1.weight", "2.weight", "3.weight"]
    assert table.live == 16 + 8 + 6
    (warning,) = caught
    assert warning.filename == __file__  # the user's line
    text = str(warning.message)
    assert text.startswith("NM(n=2, m=4) does not fit 1 of 4 layers, which stay dense: ")
    assert "0.weight (8, 6): 6 inputs are no multiple of 4" in text
    assert "exclude=" in text


def test_an_odd_layer_that_is_excluded_warns_of_nothing():
    engine = Sparsifier(Odd(), Static(), pattern=NM(2, 4), exclude=["0"])
    assert engine.density() == 0.5


def test_all_odd_layers_are_named():
    with pytest.warns(UserWarning, match=r"2 of 4 layers.*0\.weight \(8, 6\): 8 x 6 .*3\.weight \(3, 4\): 3 x 4 "):
        plan(Odd(), 0.7, pattern=Block(4, 4))


def test_a_pattern_that_fits_nothing_is_refused_before_a_weight_is_touched():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(7, 4))
    before = [layer.weight.clone() for layer in model]
    with pytest.raises(ValueError, match=r"fits no layer: 0\.weight \(8, 6\): 6 inputs .* 4; 1\.weight \(4, 7\): 7 "):
        Sparsifier(model, Static(), pattern=NM(2, 4))
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True))


def test_nothing_is_warned_of_when_something_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="density"):
            Sparsifier(Odd(), Static(), 0.3, pattern=NM(2, 4))


# ---- Budgets that move


def test_budgets_cannot_move_where_the_pattern_fixes_them():
    with pytest.raises(ValueError, match=r"SparseMomentum moves weights between layers, NM\(n=2, m=4\) fixes"):
        Sparsifier(net(), SparseMomentum(every=2, stop=8), pattern=NM(2, 4))
    Sparsifier(net(), SparseMomentum(every=2, stop=8), 0.5, pattern=Channel())


@pytest.mark.parametrize("rule", [STR(stop=9), L0(begin=3, stop=9)])
def test_a_density_that_is_an_outcome_cannot_keep_to_units(rule):
    name = type(rule).__name__
    with pytest.raises(ValueError, match=rf"{name} without a density gives up weights one by one, which FanIn\(\)"):
        Sparsifier(net(), rule, pattern=FanIn())
    assert Sparsifier(net(), rule, pattern=NM(2, 4)).plan.live == 360  # the pattern's own density


def params(pattern, density, allocation="erk"):
    engine = Sparsifier(net(), GMP(every=2, stop=8), density, pattern=pattern, allocation=allocation)
    return list(engine.params.values())


@pytest.mark.parametrize("allocation", ["erk", "global"])
@pytest.mark.parametrize(
    ("pattern", "counts", "total"),
    [
        (Unstructured(), [101, 203, 17], 321),
        (NM(2, 4), [200, 192, 33], 425),
        (FanIn(), [101, 203, 17], 321),  # units 8, 12 and 4
        (Block(2, 4), [101, 203, 17], 320),
        (Channel(), [101, 203, 17], 321),  # units 36, 32 and 12
    ],
)
def test_any_counts_are_kept_as_the_pattern_can(pattern, counts, total, allocation):
    made = params(pattern, None if pattern == NM(2, 4) else 0.4, allocation)
    scores = {p.name: p.weight.abs() for p in made}
    masks = keep_budget(made, scores, counts)
    found = [int(mask.sum()) for mask in masks.values()]
    assert all(p.pattern.holds(masks[p.name]) for p in made)
    assert abs(sum(found) - total) <= {FanIn(): 6, Channel(): 18}.get(pattern, 0)
    assert all(n >= p.least for n, p in zip(found, made, strict=True))


def test_a_global_budget_in_channels_goes_where_large_weights_are():
    made = params(Channel(), 0.3, "global")
    scores = {p.name: torch.full_like(p.weight, i).float() for i, p in enumerate(made)}
    # the last layer is full; of what is left, the second takes all but one channel of the first
    counts = [int(m.sum()) for m in keep_budget(made, scores, [100, 100, 28]).values()]
    assert counts[0] == 36
    assert counts[2] == 48
    assert abs(sum(counts) - 228) <= 16
