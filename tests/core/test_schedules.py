"""Schedules against published numbers and worked ones."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule, CubicSchedule, LinearSchedule, Schedule

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
ALL = [ConstantSchedule(0.3), CosineSchedule(0.5, 0.005), LinearSchedule(1.0, 0.25), CubicSchedule(1.0, 0.1)]


@pytest.mark.parametrize(("step", "value"), GOLDEN["cosine"]["values"].items())
def test_cosine_is_the_published_drop_fraction(step, value):
    golden = GOLDEN["cosine"]
    assert CosineSchedule(golden["alpha"])(int(step), golden["t_end"]) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("share", "sparsity"), GOLDEN["cubic_gmp"]["values"].items())
def test_cubic_is_the_published_sparsity(share, sparsity):
    density = CubicSchedule(1.0, 1 - GOLDEN["cubic_gmp"]["final_sparsity"])
    assert 1 - density(round(400 * float(share)), 400) == pytest.approx(sparsity, abs=5e-7)


@pytest.mark.parametrize(("share", "sparsity"), GOLDEN["granet"]["sparsity"].items())
def test_cubic_starts_where_it_is_told(share, sparsity):
    golden = GOLDEN["granet"]
    density = CubicSchedule(golden["initial_density"], golden["final_density"])
    assert 1 - density(round(8 * float(share)), 8) == pytest.approx(sparsity, abs=5e-7)


def test_cosine_ends_where_it_is_told():
    # half of the way from 0.5 to 0.005
    assert CosineSchedule(0.5, 0.005)(50, 100) == pytest.approx(0.2525)
    assert CosineSchedule(0.5, 0.005)(100, 100) == pytest.approx(0.005)


def test_linear_is_a_straight_line():
    # 1 - 0.6 * (0, 1/4, 1/2, 3/4, 1)
    values = [LinearSchedule(1.0, 0.4)(step, 8) for step in (0, 2, 4, 6, 8)]
    assert values == pytest.approx([1.0, 0.85, 0.7, 0.55, 0.4])


def test_constant_does_not_move():
    assert {ConstantSchedule(0.3)(step, 10) for step in range(15)} == {0.3}


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_the_last_value_is_held_after_stop(schedule):
    end = schedule.at(1.0)
    assert [schedule(step, 10) for step in (10, 11, 10**9)] == [end] * 3


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_the_first_value_holds_before_the_start(schedule):
    assert schedule(-5, 10) == schedule(0, 10) == schedule.at(0.0)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_a_schedule_never_rises(schedule):
    values = [schedule(step, 50) for step in range(60)]
    assert all(late <= early for early, late in pairwise(values))


def test_a_schedule_of_no_length_is_at_its_end():
    assert LinearSchedule(1.0, 0.4)(0, 0) == 0.4


def test_a_schedule_of_ones_own_needs_only_at():
    class Halves(Schedule):
        def at(self, share: float) -> float:
            return 1.0 if share < 0.5 else 0.0

    assert [Halves()(step, 4) for step in range(6)] == [1, 1, 0, 0, 0, 0]
