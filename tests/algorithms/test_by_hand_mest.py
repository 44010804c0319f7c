"""MEST and ITOP on tables of a few weights, worked by hand."""

import pytest
import torch
from tables import Slopes, after, live, param, steps

from lightning_sparse import MEST, SET, RigL, Sparsifier, StagedSchedule
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule

# |w| of live: 0 .5, 1 .1, 2 .3, 7 .2; |g|: 1 9, 2 .1, 7 .05
TABLE = {"weight": [0.5, -0.1, 0.3, 0, 0, 0, 0, 0.2], "mask": [1, 1, 1, 0, 0, 0, 0, 1]}
GRAD = [0, 9, -0.1, 7, 7, 7, 7, 0.05]
HALF = StagedSchedule((0.5, 0.0), (1.0,))


@pytest.mark.parametrize(
    ("lam", "kept"),
    [(1.0, {0, 1}), (0.0, {0, 2}), (0.01, {0, 2}), (0.5, {0, 1})],
    # .5, 9.1, .4, .25 (two go: 2, 7) - .5, .1, .3, .2 (1, 7) - .5, .19, .301, .2005 (1, 7) - .5, 4.6, .35, .225 (2, 7)
)
def test_weight_and_gradient_together_say_what_goes(lam, kept):
    seen = set()
    for step in range(60):
        (mask,) = after(MEST(every=1, stop=99, fraction=HALF, lam=lam), param(**TABLE, grad=GRAD, step=step), step=step)
        assert len(mask) == 4
        assert {0, 1, 2, 7} & set(mask) == kept
        seen |= set(mask)
    assert seen == kept | {3, 4, 5, 6}  # growth is random, whatever the gradient


def test_no_gradient_is_asked_for_where_the_score_has_none():
    assert [MEST(every=3, stop=9).needs_gradient(step) for step in (2, 3, 9, 12)] == [False, True, True, False]
    assert not any(MEST(every=3, stop=9, lam=0.0).needs_gradient(step) for step in range(20))
    after(MEST(every=1, stop=9, fraction=HALF, lam=0.0), param(**TABLE))  # reads none


def test_the_stages_are_the_authors():
    # 160 epochs, an update every fifth, stages end at 90 and 120: 2 %, 1 % and 0 of all weights at 90 % sparsity
    mest = MEST(every=5, stop=120)
    epochs = [(epoch, round(mest.fraction(epoch, 120) * 10, 6)) for epoch in range(5, 161, 5) if mest.due(epoch)]
    assert epochs == [(e, 2.0 if e < 90 else 1.0 if e < 120 else 0.0) for e in range(5, 121, 5)]


@pytest.mark.parametrize(
    ("values", "until", "text"),
    [
        ((0.2,), (0.5,), "one value more than ends of stages, got values=(0.2,), until=(0.5,)"),
        ((0.2, 0.1, 0.0), (0.5, 0.5), "until must be shares in (0, 1] that rise, got (0.5, 0.5)"),
        ((0.2, 0.1), (1.5,), "until must be shares in (0, 1] that rise, got (1.5,)"),
        ((0.2, 0.1), (0.0,), "until must be shares in (0, 1] that rise, got (0.0,)"),
    ],
)
def test_stages_that_cannot_be_are_refused(values, until, text):
    with pytest.raises(ValueError) as error:
        StagedSchedule(values, until)
    assert text in str(error.value)


# ---- With a soft memory bound


SOFT = MEST(variant="em_s", every=2, stop=7, fraction=StagedSchedule((0.5, 0.25, 0.0), (0.5, 1.0)), lam=0.0)


def test_a_soft_bound_prunes_to_the_plan_and_grows_above_it():
    # planned 4, six live: 4 and 5 (.1, .2) go; half of four comes on top, among the dead 6, 7, 8, 9
    six = {"weight": [6, 5, 4, 3, 0.1, 0.2, 0, 0, 0, 0], "mask": [1] * 6 + [0] * 4, "target": 4}
    seen = {tuple(after(SOFT, param(**six, step=step), step=2)[0]) for step in range(60)}
    assert {kept[:4] for kept in seen} == {(0, 1, 2, 3)}
    assert {kept[4:] for kept in seen} == {(6, 7), (6, 8), (6, 9), (7, 8), (7, 9), (8, 9)}
    assert [len(after(SOFT, param(**six), step=step)[0]) for step in (2, 4, 6, 7, 9)] == [6, 5, 5, 4, 4]


def test_the_switch_lets_a_soft_bound_regrow_what_it_pruned():
    again = MEST(variant="em_s", every=2, stop=7, fraction=HALF, lam=0.0, regrow_dropped=True)
    six = {"weight": [6, 5, 4, 3, 0.1, 0.2, 0, 0, 0, 0], "mask": [1] * 6 + [0] * 4, "target": 4}
    seen = {i for step in range(60) for i in after(again, param(**six, step=step), step=2)[0]}
    assert seen == set(range(10))


def test_a_soft_bound_that_is_almost_full_keeps_what_it_could_not_grow():
    # planned 4, six live of seven, half on top: six; one place is free, so five stay and one comes
    tight = param([6, 5, 4, 3, 0.1, 0.2, 0], [1] * 6 + [0], target=4)
    assert after(SOFT, tight, step=2) == [[0, 1, 2, 3, 5, 6]]
    full = param([6, 5, 4, 3, 2], [1] * 5, target=4)  # no more than the layer has: five
    assert after(SOFT, full, step=2) == [[0, 1, 2, 3, 4]]
    assert after(SOFT, full, step=7) == [[0, 1, 2, 3]]


def test_a_soft_bound_starts_above_the_plan_and_ends_at_it_in_a_loop():
    model = Slopes([float(i) for i in range(20, 0, -1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(model, SOFT, 0.4, init="magnitude", optimizers=[optimizer])
    assert live(sparsifier.masks["layers.0.weight"]) == list(range(12))  # 8 and a half
    seen = [live(sparsifier.masks["layers.0.weight"]) for _ in steps(model, optimizer, 9)]
    # updates at 2 (half on top), 4 and 6 (a quarter), 7 (none)
    assert [len(mask) for mask in seen] == [12, 12, 12, 10, 10, 10, 8, 8, 8]
    assert all(mask[:8] == list(range(8)) for mask in seen)  # what was grown is 0: it goes again
    assert len({tuple(mask) for mask in seen}) == 5
    assert [SOFT.settled(step) for step in (1, 6, 7, 8)] == [False, False, True, True]


def test_a_soft_bound_over_a_common_budget_is_refused():
    model = Slopes([3.0, 2, 1, 0], [3.0, 2, 1, 0])
    with pytest.raises(ValueError, match="'em_s' adds to each layer's own count; take another allocation"):
        Sparsifier(model, SOFT, 0.5, init="magnitude", allocation="global")


def test_a_soft_bound_that_will_not_be_reached_is_told():
    assert "before the final density at stop=7; give a smaller stop=" in SOFT.too_short(6)
    assert SOFT.too_short(7) == ""
    assert "masks will never move" in MEST(every=50, stop=70).too_short(40)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"variant": "ems"}, "variant must be 'em' or 'em_s', got 'ems'"),
        ({"lam": -1.0}, "lam must be a number from 0, got -1.0"),
        ({"lam": float("nan")}, "lam must be a number from 0, got nan"),
        ({"variant": "em_s", "fraction": ConstantSchedule(0.2)}, "fraction must end at 0, else 'em_s' ends above"),
    ],
)
def test_what_mest_cannot_do_is_refused(settings, text):
    with pytest.raises(ValueError) as error:
        MEST(**settings)
    assert text in str(error.value)


def test_training_flops_of_a_soft_bound_are_averaged_over_the_run():
    # .2 until .75 and .1 until 1 of the first three quarters: .175 * .75 = .13125 on top
    assert MEST(variant="em_s").training_flops(0.1, 1.0) == pytest.approx(3 * 0.1 * 1.13125)
    assert MEST(variant="em_s").training_flops(1.0, 1.0) == 3
    assert MEST().training_flops(0.1, 1.0) == MEST(variant="em_s", stop=100).training_flops(0.1, 1.0) == 3 * 0.1


# ---- ITOP: longer periods, half of the weights, the whole run


@pytest.mark.parametrize(("cls", "every"), [(SET, 1500), (RigL, 4000)])
def test_itop_is_a_preset_that_can_be_overruled(cls, every):
    itop = cls(variant="itop")
    assert (itop.every, itop.stop, itop.fraction) == (every, 1.0, CosineSchedule(0.5, 0.005))
    assert not itop.regrow_dropped
    own = cls(variant="itop", every=7, stop=70, fraction=ConstantSchedule(0.1), regrow_dropped=True)
    assert (own.every, own.stop, own.fraction, own.regrow_dropped) == (7, 70, ConstantSchedule(0.1), True)


def test_itop_moves_masks_by_the_rule_of_its_algorithm():
    # half of four go: 1 and 7; RigL grows the largest gradients of the dead: ties to 3 and 4
    settings = {"variant": "itop", "every": 1, "stop": 99, "fraction": ConstantSchedule(0.5)}
    assert after(RigL(**settings), param(**TABLE, grad=GRAD)) == [[0, 2, 3, 4]]
    (kept,) = after(SET(**settings), param(**TABLE))
    assert ({0, 1, 2, 7} & set(kept), len(kept)) == ({0, 2}, 4)


def test_an_unknown_variant_of_rigl_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="variant must be 'paper' or 'itop', got 'original'"):
        RigL(variant="original")
