"""DSR on tables of a few weights, worked by hand."""

import pytest
import torch
from tables import Slopes, after, live, param, steps

from lightning_sparse import DSR, Sparsifier
from lightning_sparse.core.schedules import ConstantSchedule

# At threshold .15, a (four of eight live) loses 1; b (six of twelve live) loses 3, 4 and 5. Three survive in each, so
# of four each grows two: a among 3 to 6, b among 6 to 11.
A = {"weight": [0.5, -0.1, 0.3, 0, 0, 0, 0, 0.2], "mask": [1, 1, 1, 0, 0, 0, 0, 1], "name": "a"}
B = {"weight": [1, 0.9, 0.8, 0.04, -0.03, 0.02, 0, 0, 0, 0, 0, 0], "mask": [1] * 6 + [0] * 6, "name": "b"}


def dsr(fraction=0.4, threshold=0.15, **settings):
    return DSR(every=1, stop=9, fraction=ConstantSchedule(fraction), threshold=threshold, **settings)


def test_what_is_below_the_threshold_goes_and_is_dealt_by_what_has_survived():
    seen_a, seen_b = set(), set()
    for step in range(40):
        a, b = after(dsr(), param(**A, step=step), param(**B, step=step))
        assert {0, 2, 7} <= set(a) <= {0, 2, 3, 4, 5, 6, 7}
        assert {0, 1, 2} <= set(b) <= {0, 1, 2, 6, 7, 8, 9, 10, 11}
        assert (len(a), len(b)) == (5, 5)
        seen_a, seen_b = seen_a | set(a), seen_b | set(b)
    assert (len(seen_a), len(seen_b)) == (7, 9)  # every free place is drawn at some time


def test_growth_is_even_over_the_free_places():
    times = dict.fromkeys(range(8), 0)
    for step in range(600):
        for i in after(dsr(), param(**A, step=step), param(**B, step=step))[0]:
            times[i] += 1
    assert [times[i] for i in (0, 1, 2, 7)] == [600, 0, 600, 600]
    assert all(240 < times[i] < 360 for i in (3, 4, 5, 6))  # two of four: 300, standard deviation 12


# four of ten live weights go
@pytest.mark.parametrize(
    ("wanted", "threshold"),
    [(0.3, 0.075), (0.37, 0.15), (0.4, 0.15), (0.44, 0.15), (0.45, 0.3)],
    # 1.1 * 3 = 3.3 < 4: halved; 4.07, 4.4 and .9 * 4.4 = 3.96: left; .9 * 4.5 = 4.05 > 4: doubled
)
def test_the_threshold_halves_above_and_doubles_below_the_wanted_number(wanted, threshold):
    a, b = param(**A), param(**B)
    after(dsr(wanted), a, b)
    assert [float(p.state["threshold"]) for p in (a, b)] == pytest.approx([threshold] * 2)


def test_the_next_update_takes_the_adapted_threshold():
    a, b = param(**A), param(**B)
    a.state["threshold"] = b.state["threshold"] = torch.tensor(0.25)  # a now also loses 7 (.2)
    kept, _ = after(dsr(threshold=9.0), a, b)
    assert set(kept) & {0, 1, 2, 7} == {0, 2}


def test_a_layer_that_joins_takes_the_threshold_of_the_others():
    a, b = param(**A), param(**B)
    a.state["threshold"] = torch.tensor(0.01)
    after(dsr(), a, b)  # nothing is below: doubled
    assert [float(p.state["threshold"]) for p in (a, b)] == pytest.approx([0.02] * 2)


def test_of_a_layer_that_would_lose_all_the_largest_stays():
    weak = param([0.01, 0.03, 0.02, 0, 0, 0, 0, 0], [1, 1, 1] + [0] * 5, name="weak")
    kept, b = after(dsr(), weak, param(**B))
    # two of weak and three of b go, one and three survive; 1 : 3 of five is 1.25 and 3.75
    assert (1 in kept, {0, 2} & set(kept), len(kept), len(b)) == (True, set(), 2, 7)


def test_what_a_layer_has_no_place_for_grows_elsewhere():
    # a: six of seven live, 5 (.1) goes, one place (6) is free; b: two go. 5 : 2 of three are 2.1 and .9, but a has room
    # for one
    a = param([9, 8, 7, 6, 5, 0.1, 0], [1] * 6 + [0], name="a")
    b = param([9, 8, 0.1, 0.1, 0, 0, 0, 0], [1] * 4 + [0] * 4, name="b")
    kept, others = after(dsr(), a, b)
    assert kept == [0, 1, 2, 3, 4, 6]
    assert (len(others), {2, 3} & set(others)) == (4, set())


def test_without_places_for_all_each_layer_drops_as_many_as_it_has_free():
    # three of seven are below, one place is free: the smallest of them goes; the empty threshold still sees three
    full = param([9, 8, 7, 6, 0.1, 0.05, 0.12, 0], [1] * 7 + [0], name="full")
    assert after(dsr(3 / 7), full) == [[0, 1, 2, 3, 4, 6, 7]]
    assert float(full.state["threshold"]) == pytest.approx(0.15)


def test_the_switch_lets_dropped_weights_compete():
    full = {"weight": [9, 8, 7, 6, 0.1, 0.05, 0.12, 0], "mask": [1] * 7 + [0]}
    seen = {tuple(after(dsr(regrow_dropped=True), param(**full, step=step))[0]) for step in range(40)}
    assert {len(kept) for kept in seen} == {7}
    assert all(set(kept) >= {0, 1, 2, 3} for kept in seen)
    assert len(seen) == 4  # one of 4, 5, 6, 7 is left out


def test_the_threshold_never_gets_lost_at_zero_or_infinity():
    zeros = param([0.0] * 10, [1] * 5 + [0] * 5)  # four go whatever the threshold
    for _ in range(200):
        after(dsr(0.1), zeros)
    assert float(zeros.state["threshold"]) == 2.0**-100
    alone = param([1.0, 0.0], [1, 0])  # nothing can go
    for _ in range(200):
        after(dsr(1.0), alone)
    assert float(alone.state["threshold"]) == 2.0**100


def test_the_total_is_kept_in_a_loop_while_layers_trade():
    # the weights of the first layer shrink by .1 at the first step, then nothing has a gradient
    model = Slopes([0.55, 0.45, 0.35, 0.2] + [0.0] * 12, [5, 4, 3, 2] + [0.0] * 12)
    model.slopes[0] = torch.tensor([[1.0, 1, 1, 1] + [0.0] * 12])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, dsr(0.25), 0.25, init="magnitude", optimizers=[optimizer])
    seen = []
    for _ in steps(model, optimizer, 3):
        seen.append([int(mask.sum()) for mask in sparsifier.masks.values()])
        model.slopes[0].zero_()
    # step 1: of .45 .35 .25 .1 one is below .15 (wanted: two, so .3 is next); 3 : 4 of one: the second grows it
    # step 2: .25 is below .3, in the second the new 0: two go, 2 : 4 of two are .67 and 1.33, one each
    # step 3: the new 0 of each goes, and one comes
    assert seen == [[3, 5], [3, 5], [3, 5]]
    assert [live(mask)[:4] for mask in sparsifier.masks.values()][1] == [0, 1, 2, 3]
    saved = sparsifier.state_dict()["params"]["layers.0.weight"]["state"]["threshold"]
    assert float(saved) == pytest.approx(0.3)


@pytest.mark.parametrize("threshold", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_threshold_that_is_no_positive_number_is_refused(threshold):
    with pytest.raises(ValueError, match=f"DSR: threshold must be a positive number, got {threshold}"):
        DSR(threshold=threshold)


def test_the_defaults_are_the_authors():
    plan = DSR().planned(2000, None)  # their 190 of 200 epochs
    assert (plan.stop, DSR.allocation, plan.threshold) == (1900, "uniform", 1e-3)
    assert round(plan.fraction(1, plan.stop) * 5324) == 532  # the authors' 600 of LeNet-300-100 at 2 %, about
    assert not any(plan.needs_gradient(step) for step in range(1, 2000))
