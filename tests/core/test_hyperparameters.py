"""When masks move, and which hyper-parameters are refused."""

from dataclasses import FrozenInstanceError

import pytest

from lightning_sparse import ACDC, GMP, MEST, SET, GlobalMagnitude, GraNet, RigL, SparseMomentum
from lightning_sparse.algorithms import Periodic
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, StagedSchedule

PERIODIC = [cls for cls in ALGORITHMS.values() if issubclass(cls, Periodic)]


def refusal(make, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        make(*args, **kwargs)
    return str(error.value)


def due(algorithm, last=40):
    return [step for step in range(1, last) if algorithm.due(step)]


@pytest.mark.parametrize("cls", [RigL, SET, SparseMomentum])
def test_masks_move_at_multiples_of_every_up_to_stop(cls):
    assert due(cls(every=3, stop=10)) == [3, 6, 9]
    assert due(cls(every=5, stop=10)) == [5, 10]
    assert due(cls(every=50, stop=10)) == []


def test_whole_steps_may_arrive_as_floats_and_shares_stay_shares():
    assert due(RigL(every=3.0, stop=10.0)) == [3, 6, 9]
    assert type(GMP(begin=6.0, stop=10.0).begin) is int
    assert type(RigL(stop=1.0).stop) is float
    assert "got 10.5" in refusal(RigL, stop=10.5)


def test_pruning_also_moves_at_stop():
    assert due(GMP(every=3, stop=10)) == [3, 6, 9, 10]
    assert due(GMP(every=3, stop=10, begin=6)) == [9, 10]


def test_rigl_wants_gradients_at_updates_only_and_set_never():
    assert [step for step in range(1, 20) if RigL(every=3, stop=10).needs_gradient(step)] == [3, 6, 9]
    assert not any(SET(every=3, stop=10).needs_gradient(step) for step in range(1, 20))


def test_a_share_of_the_run_becomes_optimizer_steps():
    assert RigL(every=10, stop=0.75).planned(1000, None).stop == 750
    assert RigL(every=10, stop=0.0001).planned(1000, None).stop == 1
    assert GMP(every=10, stop=0.5, begin=0.1).planned(1000, None) == GMP(every=10, stop=500, begin=100)
    assert RigL(every=10, stop=400).planned(None, None).stop == 400


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (GMP(every=3, stop=20), "stop"),
        (GraNet(every=3, end=20, stop=30), "end"),
        (ACDC(begin=5, every=3, stop=20, last=3), "stop"),
        (MEST(variant="em_s", every=3, stop=20), "stop"),
        (GlobalMagnitude(rounds=4, stop=20), "stop"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_run_that_ends_before_the_final_density_is_told_alike(algorithm, name):
    planned = algorithm.planned(19, None)
    text = "the run ends at step {}, before the final density at {}=20; give a smaller {}="
    assert planned.too_short(19) == text.format(19, name, name)
    assert planned.too_short(2) == text.format(2, name, name)
    assert "before the final density" not in planned.too_short(20)
    assert planned.too_short(21) == planned.too_short(None) == ""


def test_a_pruning_at_the_very_end_leaves_nothing_to_train():
    assert "nothing trains after it" in GlobalMagnitude(stop=20).planned(20, None).too_short(20)


def test_an_epoch_becomes_optimizer_steps():
    plan = SparseMomentum().planned(1000, 250)
    assert due(plan, 1100) == [250, 500, 750]


def test_a_share_of_one_stops_before_the_last_step_but_pruning_ends_there():
    assert RigL(every=5, stop=1.0).planned(20, None).stop == 19
    assert RigL(every=5, stop=20).planned(20, None).stop == 20  # steps are taken at their word
    assert due(GMP(every=6, stop=1.0).planned(20, None)) == [6, 12, 18, 20]


def test_a_plan_is_a_copy():
    algorithm = RigL(every="epoch", stop=0.5)
    algorithm.planned(100, 10)
    assert (algorithm.every, algorithm.stop) == ("epoch", 0.5)
    with pytest.raises(FrozenInstanceError):
        algorithm.every = 3


def test_the_variants_of_set_fill_in_their_own_defaults():
    plain, original = SET(), SET(variant="original")
    assert (plain.every, plain.stop, plain.fraction, plain.regrow_dropped) == (100, 0.75, CosineSchedule(0.3), False)
    assert (original.every, original.stop) == ("epoch", 1.0)
    assert (original.fraction, original.regrow_dropped) == (ConstantSchedule(0.3), True)
    own = SET(variant="original", every=7, fraction=LinearSchedule(0.2), regrow_dropped=False)
    assert (own.every, own.stop, own.fraction, own.regrow_dropped) == (7, 1.0, LinearSchedule(0.2), False)


@pytest.mark.parametrize("cls", PERIODIC)
@pytest.mark.parametrize("every", [0, -1, 2.5, "day"])
def test_a_wrong_every_is_refused_with_its_value(cls, every):
    text = refusal(cls, every=every)
    assert f"every must be a positive number of optimizer steps or 'epoch', got {every!r}" in text
    assert text.startswith(cls.__name__)


def test_a_truth_value_is_not_a_number_of_steps():
    assert "got True" in refusal(RigL, every=True)


@pytest.mark.parametrize("cls", PERIODIC)
@pytest.mark.parametrize("stop", [0, -3, 0.0, 1.01, float("nan"), "end", True])
def test_a_wrong_stop_is_refused_with_its_value(cls, stop):
    assert f"stop must be optimizer steps (an int from 1) or a share of the run (a float in (0, 1]), got {stop!r}" in (
        refusal(cls, stop=stop)
    )


@pytest.mark.parametrize(
    ("fraction", "reached"),
    [
        (ConstantSchedule(1.5), "reaches 1.5"),
        (CosineSchedule(0.3, -0.1), "reaches -"),
        (LinearSchedule(0.5, 2.0), "reaches 1."),
        (StagedSchedule((0.3, 2.0, 0.3), (0.01, 0.02)), "reaches 2.0"),  # however short the stage
    ],
)
def test_a_fraction_that_leaves_its_range_is_refused_with_the_value(fraction, reached):
    text = refusal(RigL, fraction=fraction)
    assert "fraction must stay in [0, 1]" in text
    assert reached in text


def test_a_fraction_that_is_a_number_is_refused_with_the_two_schedules_it_may_mean():
    text = refusal(SET, fraction=0.3)
    assert "fraction must be a Schedule, got 0.3: CosineSchedule(0.3) decays it to 0, ConstantSchedule(0.3)" in text


def test_all_problems_are_named_at_once():
    text = refusal(RigL, every=0, stop=1.5, fraction=0.3)
    assert "RigL: 3 problems" in text
    assert all(part in text for part in ("every must be", "stop must be", "fraction must be"))
    text = refusal(SparseMomentum, every=0, beta=1.0)
    assert "every must be" in text
    assert "beta must be in [0, 1), got 1.0" in text


def test_an_unknown_variant_is_refused_with_the_known_ones():
    assert "variant must be 'magnitude', 'original' or 'itop', got 'random'" in refusal(SET, variant="random")


@pytest.mark.parametrize("begin", [-1, -0.5, 1.5, True])
def test_a_wrong_begin_is_refused_with_its_value(begin):
    assert f"begin must be optimizer steps or a share of the run in [0, 1], got {begin!r}" in refusal(GMP, begin=begin)


@pytest.mark.parametrize(("begin", "stop"), [(10, 10), (11, 10), (0.5, 0.5)])
def test_a_begin_after_stop_is_refused_with_both(begin, stop):
    assert f"begin must come before stop, got begin={begin}, stop={stop}" in refusal(GMP, begin=begin, stop=stop)


def test_a_share_of_a_run_of_unknown_length_is_refused_with_the_way_out():
    text = refusal(RigL(every=10, stop=0.75).planned, None, None)
    assert "RigL: stop=0.75 is a share of the run, but the length of the run is unknown; give stop= as a number" in text
    assert "GMP: begin=0.1 is a share" in refusal(GMP(every=10, stop=100, begin=0.1).planned, None, None)


@pytest.mark.parametrize("epoch_steps", [None, 0])
def test_an_epoch_of_unknown_length_is_refused_with_the_way_out(epoch_steps):
    text = refusal(SparseMomentum(stop=100).planned, 1000, epoch_steps)
    assert "SparseMomentum: every='epoch', but the length of an epoch is unknown; give every= in optimizer" in text
