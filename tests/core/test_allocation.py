"""Layer densities against published numbers; integers that add up."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Size, nn

from lightning_sparse.core.allocation import ALLOCATIONS, apportion, deal, er, erk, least_density, uniform
from lightning_sparse.core.plan import plan

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())["erk"]
LENET = {"fc1": Size([300, 784]), "fc2": Size([100, 300]), "fc3": Size([10, 100])}

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=6,
)
DENSITIES = st.floats(0.01, 1.0)


def layer(shape):
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2:])


def network(shapes):
    return nn.Sequential(*(layer(shape) for shape in shapes))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda r: f"{r['net']}-{r['density']}")
def test_erk_gives_the_published_densities_and_counts(row):
    layers = plan(network(row["shapes"]), row["density"]).layers
    assert [round(r.density, 6) for r in layers] == row["densities"]
    assert [r.live for r in layers] == row["live"]
    assert sum(row["live"]) == round(row["density"] * sum(prod(s) for s in row["shapes"]))


@given(SHAPES, DENSITIES)
@settings(deadline=None, max_examples=100)
def test_erk_is_proportional_where_not_dense_and_meets_the_budget(shapes, density):
    named = {str(i): Size(s) for i, s in enumerate(shapes)}
    shares = erk(named, density)
    sizes = np.array([prod(s) for s in shapes], float)
    got = np.array(list(shares.values()))
    raw = np.array([sum(s) / prod(s) for s in shapes])
    assert got @ sizes == pytest.approx(density * sizes.sum())
    assert ((got > 0) & (got <= 1 + 1e-12)).all()
    free = got < 1
    if free.any():
        scale = (got / raw)[free]
        assert scale == pytest.approx(scale[0])
        assert (raw[~free] * scale[0] >= 1 - 1e-9).all()  # a dense layer asked for all it has, or more


@given(SHAPES, DENSITIES, st.sampled_from(["erk", "er", "uniform"]))
@settings(deadline=None, max_examples=100)
def test_planned_counts_sum_to_the_budget_and_are_within_one_of_their_share(shapes, density, allocation):
    sizes = [prod(s) for s in shapes]
    total = round(density * sum(sizes))
    assume(total >= len(shapes))
    layers = plan(network(shapes), density, allocation).layers
    live = [row.live for row in layers]
    assert sum(live) == total
    assert all(1 <= k <= n for k, n in zip(live, sizes, strict=True))
    if all(row.density * n >= 1 for row, n in zip(layers, sizes, strict=True)):
        # rounding the total moves a share by less than half a weight, rounding the share by less than one
        assert all(abs(k - row.density * n) < 1.5 for k, row, n in zip(live, layers, sizes, strict=True))


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.9])
def test_saturated_layers_are_exactly_dense(density):
    layers = plan(network([tuple(s) for s in LENET.values()]), density).layers
    assert layers[2].density == 1.0
    assert layers[2].live == 1000


def test_all_layers_tied_at_the_maximum_become_dense_together():
    # raw * size is 4, 4, 200; eps = (0.02 * 10008) / 208 = 0.962 < 1; at 0.03 it is 1.44: both small ones are dense,
    # and the large one gets (300.24 - 8) / 10000
    shapes = {"a": Size([2, 2]), "b": Size([2, 2]), "c": Size([100, 100])}
    assert erk(shapes, 0.03) == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.029224})
    assert erk(shapes, 0.02) == pytest.approx({"a": 200.16 / 208, "b": 200.16 / 208, "c": 200.16 / 208 * 0.02})


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5)])
def test_er_ignores_the_kernel(kernel):
    # (inputs + outputs) / (inputs * outputs): 6 / 8 and 10 / 24, a ratio of 1.8 whatever the kernel
    shapes = {"conv": Size([4, 2, *kernel]), "fc": Size([4, 6])}
    shares = er(shapes, 0.25)
    assert shares["conv"] / shares["fc"] == pytest.approx(1.8)
    size = 8 * kernel[0] * kernel[1]
    assert shares["conv"] * size + shares["fc"] * 24 == pytest.approx(0.25 * (size + 24))


def test_erk_counts_the_kernel():
    # 4 + 2 + 3 + 3 = 12 of 72 and 4 + 6 = 10 of 24: eps = 0.25 * 96 / 22
    shares = erk({"conv": Size([4, 2, 3, 3]), "fc": Size([4, 6])}, 0.25)
    assert shares == pytest.approx({"conv": 24 / 22 * 12 / 72, "fc": 24 / 22 * 10 / 24})


@pytest.mark.parametrize("name", ["uniform", "global"])
def test_uniform_gives_all_layers_the_same(name):
    assert ALLOCATIONS[name](LENET, 0.3) == {"fc1": 0.3, "fc2": 0.3, "fc3": 0.3}
    assert uniform(LENET, 1.0) == {"fc1": 1.0, "fc2": 1.0, "fc3": 1.0}


@pytest.mark.parametrize("allocation", [uniform, er, erk])
def test_density_one_is_dense_everywhere(allocation):
    assert allocation(LENET, 1.0) == pytest.approx({"fc1": 1.0, "fc2": 1.0, "fc3": 1.0}, abs=1e-12)
    layers = plan(network([tuple(s) for s in LENET.values()]), 1.0, allocation.__name__).layers
    assert [r.live for r in layers] == [r.size for r in layers]


def test_the_remainder_goes_to_the_largest_fraction_then_to_the_first():
    # floors 2, 3, 4 leave two of 11; 0.8 is served first, then the first of the two that have 0.6
    assert apportion([2.6, 3.6, 4.8], 11, upper=[9, 9, 9]) == [3, 3, 5]


@pytest.mark.parametrize("share", [apportion, lambda *args: deal(*args[:2], [0] * 3, args[2], [1] * 3)])
def test_equal_remainders_are_equal_whatever_floats_make_of_them(share):
    # 28 * 11 / 21 = 14 2/3 and 28 * 5 / 21 = 6 2/3: in floats the second is larger
    assert share([11.0, 5.0, 5.0], 28, [99] * 3) == [15, 7, 6]
    assert share([5.0, 11.0, 5.0], 27, [99] * 3) == [7, 14, 6]  # 6 3/7, 14 1/7, 6 3/7
    # 0.7 of 45, of 15 and of 10: 31.5, 10.5 and 7, of which floats make 31.499999999999996
    assert share([0.7 * 45, 0.7 * 15, 0.7 * 10], 49, [99] * 3) == [32, 10, 7]


def test_what_overflows_is_shared_in_proportion():
    # 10 of 0.8 : 0.1 : 0.1 is 8, 1, 1; the first takes only 4, and 6 are shared equally
    assert apportion([0.8, 0.1, 0.1], 10, upper=[4, 9, 9]) == [4, 3, 3]


def test_nobody_gets_less_than_the_least():
    assert apportion([0.0, 0.0, 100.0], 10, upper=[5, 5, 50], lower=1) == [1, 1, 8]
    assert apportion([0.0, 9.0], 5, upper=[0, 9], lower=1) == [0, 5]  # it has room for none


def test_shares_of_nothing_are_equal():
    assert apportion([0.0, 0.0, 0.0], 6, upper=[9, 9, 1]) == [3, 2, 1]


BOUNDED = st.lists(
    st.tuples(st.floats(1e-3, 1e4), st.one_of(st.integers(1, 30), st.integers(1, 10**6))), min_size=1, max_size=8
)


def water_level(shares, total, lower, upper):
    """clip(scale * shares) with the scale at which it sums to ``total``, found by bisection."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * shares, lower, upper).sum() > total:
            high = middle
        else:
            low = middle
    return np.clip(low * shares, lower, upper)


@given(BOUNDED, st.integers(0, 1), st.data())
@settings(deadline=None, max_examples=150)
def test_apportion_is_exact_within_bounds_and_close_to_proportional(rows, lower, data):
    shares, upper = [r[0] for r in rows], [r[1] for r in rows]
    total = data.draw(st.integers(lower * len(rows), sum(upper)))
    counts = apportion(shares, total, upper, lower)
    assert sum(counts) == total
    assert all(isinstance(k, int) and lower <= k <= u for k, u in zip(counts, upper, strict=True))
    assert np.abs(np.array(counts) - water_level(np.array(shares), total, lower, upper)).max() < 1 + 1e-5


@pytest.mark.parametrize(("total", "lower"), [(11, 0), (-1, 0), (1, 1)])
def test_a_total_outside_the_bounds_is_refused_with_the_bounds(total, lower):
    with pytest.raises(ValueError, match=f"cannot share {total} over 2 layers that take {2 * lower} to 10"):
        apportion([1.0, 1.0], total, upper=[4, 6], lower=lower)


def test_an_impossible_budget_names_the_least_density_and_that_one_works():
    net = network([(10, 10), (5, 10), (5, 5)])  # 175 weights in 3 layers
    with pytest.raises(ValueError, match=r"keeps 2 of 175 .* 3 layers; the least density .* reachable is 0.01715"):
        plan(net, 0.01)
    assert [row.live for row in plan(net, 0.01715).layers] == [1, 1, 1]


def test_the_least_density_is_rounded_up_to_four_digits():
    # 3 / 175 = 0.0171428..., 2 / 100, 1 / 996 = 0.00100401...
    assert least_density([100, 50, 25]) == 0.01715
    assert least_density([75, 25]) == 0.02
    assert least_density([996] * 150) == 0.001005


def test_the_least_density_named_works_for_many_layers_too():
    net = nn.ModuleList(nn.Linear(996, 1, bias=False) for _ in range(150))
    with pytest.raises(ValueError, match="reachable is") as error:
        plan(net, 1e-5)
    named = float(str(error.value).rpartition(" ")[2])
    assert plan(net, named).live == 150
