"""Calls take turns, and what is kept are medians of what the clocks say."""

import pytest

from lightning_sparse.export.reports.timing import Timing, in_turns


class Clock:
    """Time passes only when a call says so."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def __call__(self):
        return self.wall, self.cpu


def takes(clock, log, name, walls):
    """A call that takes these seconds, one after the other and the last for ever; a tenth of it is CPU time."""
    left = list(walls)

    def run():
        log.append(name)
        seconds = left.pop(0) if len(left) > 1 else left[0]
        clock.wall += seconds
        clock.cpu += seconds / 10

    return run


def test_each_round_gives_every_call_one_turn_of_an_untimed_and_the_timed_runs():
    clock, log = Clock(), []
    runs = {name: takes(clock, log, name, [1.0]) for name in "abc"}
    in_turns(runs, 3, clock=clock)
    first = ["a"] * 3 + ["b"] * 3 + ["c"] * 3  # untimed, one to see how long it takes, timed
    later = ["a"] * 2 + ["b"] * 2 + ["c"] * 2
    assert log == first + later + later


def test_medians_leave_out_the_untimed_runs():
    clock, log = Clock(), []
    run = takes(clock, log, "a", [90.0, 3.0, 5.0, 90.0, 4.0, 90.0, 8.0])  # untimed: the first, the second, 4th and 6th
    assert in_turns({"a": run}, 3, clock=clock) == {"a": Timing(5.0, pytest.approx(0.5))}


@pytest.mark.parametrize(("seconds", "timed"), [(1.0, 1), (0.024, 2), (0.01, 5), (0.0001, 20)])
def test_short_calls_run_more_often_in_a_turn(seconds, timed):
    clock, log = Clock(), []
    in_turns({"a": takes(clock, log, "a", [seconds])}, 1, turn=0.0501, clock=clock)
    assert len(log) == 2 + timed


def test_a_call_that_raises_later_has_no_further_turn_and_the_others_go_on():
    clock, log = Clock(), []

    def breaks():
        log.append("b")
        if log.count("b") > 3:
            raise MemoryError("too large")
        clock.wall += 1

    found = in_turns({"a": takes(clock, log, "a", [2.0]), "b": breaks}, 4, clock=clock)
    assert found["a"] == Timing(2.0, pytest.approx(0.2))
    assert isinstance(found["b"], MemoryError)
    assert log.count("b") == 4
    assert log.count("a") == 9


def test_real_clocks_see_a_pause_as_wall_time_only():
    from time import sleep

    found = in_turns({"sleep": lambda: sleep(0.02)}, 1)["sleep"]
    assert found.wall >= 0.02
    assert found.cpu < found.wall
