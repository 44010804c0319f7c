"""How long calls take: many of them in turns, so that other load on the machine hits all alike."""

from collections.abc import Callable, Hashable, Mapping
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], object]
Clock = Callable[[], tuple[float, float]]
_MOST = 20  # timed calls in a turn


class Timing(NamedTuple):
    """Medians of one call, in seconds.

    Attributes:
        wall: that passed.
        cpu: that all threads of this process worked.
    """

    wall: float
    cpu: float


def clocks() -> tuple[float, float]:
    """Wall time and the process's CPU time, in seconds."""
    return perf_counter(), process_time()


def in_turns(
    runs: Mapping[Key, Run], rounds: int, *, turn: float = 0.05, clock: Clock = clocks
) -> dict[Key, Timing | Exception]:
    """The medians of each call, or what it raised.

    In each round every call has its turn: once untimed, then as often as fits. One that raises has no further turn.

    Args:
        runs: what to call.
        rounds: how many turns each has.
        turn: seconds that a turn is to take; at least one timed call, at most 20.
        clock: tells wall and CPU time.

    Example:
        >>> now = iter(range(100))
        >>> in_turns({"a": lambda: None, "b": lambda: 1 / 0}, 2, clock=lambda: (2.0 * next(now), 1.0))
        {'a': Timing(wall=2.0, cpu=0.0), 'b': ZeroDivisionError('division by zero')}
    """
    repeats: dict[Key, int] = {}
    taken: dict[Key, list[Timing]] = {key: [] for key in runs}
    failed: dict[Key, Exception] = {}
    for _ in range(rounds):
        for key in [key for key in runs if key not in failed]:
            try:
                runs[key]()
                if key not in repeats:
                    first = _timed(runs[key], clock)
                    repeats[key] = max(1, min(_MOST, int(turn / first.wall) if first.wall > 0 else _MOST))
                taken[key] += [_timed(runs[key], clock) for _ in range(repeats[key])]
            except Exception as error:
                failed[key] = error
    return {key: failed.get(key) or _median(taken[key]) for key in runs}


def _timed(run: Run, clock: Clock) -> Timing:
    before = clock()
    run()
    after = clock()
    return Timing(after[0] - before[0], after[1] - before[1])


def _median(taken: list[Timing]) -> Timing:
    return Timing(median(one.wall for one in taken), median(one.cpu for one in taken))
