"""How strong a penalty is: one number or schedule for all, or one for each glob."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sparse.core.schedules import ConstantSchedule, Schedule
from lightning_sparse.core.select import matches
from lightning_sparse.core.values import is_number

Strength = float | Schedule | Mapping[str, float | Schedule]


class Strengths:
    """The strength for each name at each step.

    Args:
        wanted: what the user gave.
        names: of what is penalized.
        total_steps: optimizer steps of the run, or None when unknown.

    Raises:
        ValueError: if a schedule runs over a length that is unknown, or globs and names do not match.

    Example:
        >>> from lightning_sparse import LinearSchedule
        >>> strengths = Strengths({"head": 0.5, "*": LinearSchedule(0.0, 1.0)}, ["body.weight", "head.weight"], 100)
        >>> strengths("body.weight", 25), strengths("head.weight", 25)
        (0.25, 0.5)
    """

    def __init__(self, wanted: Strength, names: Sequence[str], total_steps: int | None) -> None:
        globs = dict(wanted) if isinstance(wanted, Mapping) else {"*": wanted}
        self._stop = total_steps or 1
        if total_steps is None and any(_moves(value) for value in globs.values()):
            raise ValueError(
                f"strength={wanted} is a schedule over the run, but the length of the run is unknown; "
                "give Trainer(max_steps=...) or a number"
            )
        lost = [glob for glob in globs if not any(matches(name, [glob]) for name in names)]
        bare = [name for name in names if not matches(name, list(globs))]
        if names and lost:
            raise ValueError(f"strength globs {lost} match nothing that is penalized; there are {', '.join(names)}")
        if bare:
            raise ValueError(f"no strength for {', '.join(bare)}; add a glob, '*' for the rest, or exclude them")
        self._schedules = {
            name: _schedule(next(value for glob, value in globs.items() if matches(name, [glob]))) for name in names
        }

    def __call__(self, name: str, step: int) -> float:
        """The strength for ``name`` in the step that follows ``step`` others."""
        return self._schedules[name](step, self._stop)


def strength_problems(wanted: Any) -> list[str]:
    """What is wrong with a strength, whatever the model: a sentence each.

    Example:
        >>> strength_problems(-1.0)
        ['strength must be a number from 0, or a Schedule that stays there, got -1.0']
    """
    values = list(wanted.values()) if isinstance(wanted, Mapping) else [wanted]
    found = [] if values else [f"strength has no globs: give a number, a Schedule, or {{glob: number}}, got {wanted!r}"]
    if isinstance(wanted, Mapping) and (odd := [glob for glob in wanted if not isinstance(glob, str)]):
        found.append(f"strength must be given by globs, which are strings, got {odd!r}")
    for value in values:
        reached = value.reached() if isinstance(value, Schedule) else [value]
        if bad := [x for x in reached if not _is_strength(x)]:
            more = f", which reaches {bad[0]!r}" if isinstance(value, Schedule) else ""
            found.append(f"strength must be a number from 0, or a Schedule that stays there, got {value!r}{more}")
    return found


def _is_strength(value: object) -> bool:
    return is_number(value) and value >= 0  # type: ignore[operator]


def _moves(value: float | Schedule) -> bool:
    return isinstance(value, Schedule) and not isinstance(value, ConstantSchedule)


def _schedule(value: float | Schedule) -> Schedule:
    return value if isinstance(value, Schedule) else ConstantSchedule(value)
