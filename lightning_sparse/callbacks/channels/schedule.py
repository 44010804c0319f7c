"""When channels are cut: moments of a run, told from what has been done already."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from lightning_sparse.core.values import is_number, is_whole

At = int | float | list[int | float]
Unit = Literal["epochs", "steps"]


@dataclass(frozen=True)
class Moments:
    """The moments of one run.

    Attributes:
        unit: what they count: epochs that have ended, or optimizer steps.
        at: ascending.
        between: whether a moment may be in the middle of an epoch; else it waits for the end of one.
        every: where there is no end to them: one after so many epochs.

    Example:
        >>> moments = Moments("epochs", (2, 4))
        >>> [moments.reached(epochs, steps=0) for epochs in range(6)]
        [0, 0, 1, 1, 2, 2]
    """

    unit: Unit
    at: tuple[int, ...]
    between: bool = False
    every: int | None = None

    def reached(self, epochs: int, steps: int) -> int:
        """How many of them have come.

        Args:
            epochs: that have ended.
            steps: of the optimizer so far.
        """
        now = epochs if self.unit == "epochs" else steps
        if self.every:
            return now // self.every
        return sum(moment <= now for moment in self.at)

    def share(self, count: int, keep: float) -> float:
        """What stays after ``count`` of them, of what was there at first: in equal factors down to ``keep``.

        Example:
            >>> [round(Moments("epochs", (1, 2)).share(count, 0.25), 4) for count in (0, 1, 2)]
            [1.0, 0.5, 0.25]
        """
        return keep if self.every or count >= len(self.at) else keep ** (count / len(self.at))

    def over(self, count: int) -> bool:
        """Whether none is to come after ``count`` of them."""
        return not self.every and count >= len(self.at)


def moments(at: At | None, every: int | None, at_steps: Sequence[int] | None, trainer: Any, endless: bool) -> Moments:
    """The moments of a Trainer's run.

    Args:
        at: whole numbers are epochs that have ended, others shares of the run; None: half of it.
        every: so many epochs, as long as another one follows.
        at_steps: optimizer steps.
        trainer: about to train.
        endless: whether ``every`` needs no last time.

    Raises:
        ValueError: if the length of the run is needed and unknown.
    """
    if at_steps is not None:
        return Moments("steps", tuple(sorted(at_steps)), between=True)
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) and trainer.max_steps == -1 else None
    if every is not None:
        if epochs is not None:
            return Moments("epochs", tuple(range(every, epochs, every)))
        if endless:
            return Moments("epochs", (), every=every)
        raise ValueError(f"every={every} goes down to keep in equal parts, so it needs Trainer(max_epochs=...); or at=")
    wanted = at if isinstance(at, list | tuple) else [0.5 if at is None else at]
    if all(is_whole(moment) for moment in wanted):
        return Moments("epochs", tuple(sorted(int(moment) for moment in wanted)))
    if epochs is not None:
        ends = [int(m) if is_whole(m) else max(1, ceil(m * epochs - 1e-9)) for m in wanted]
        return Moments("epochs", tuple(sorted(ends)))
    total = trainer.estimated_stepping_batches
    if not 0 < total < float("inf") or any(is_whole(moment) for moment in wanted):
        text = "a share of the run, whose length in epochs is unknown; give epochs, or at_steps="
        raise ValueError(f"at={at} is {text}")
    return Moments("steps", tuple(sorted(ceil(m * total - 1e-9) for m in wanted)))


def moment_problems(at: Any, every: Any, at_steps: Any) -> list[str]:
    """What is wrong with when channels are to be cut, whatever the run: a sentence each.

    Example:
        >>> moment_problems(at=[2, 0], every=None, at_steps=None)
        ['at must be epochs from 1 on (whole numbers) or shares of the run between 0 and 1, got 0']
    """
    given = {"at": at, "every": every, "at_steps": at_steps}
    found = [name for name, value in given.items() if value is not None]
    problems = [f"{' and '.join(found)} each say when; give one of them"] if len(found) > 1 else []
    listed = at if isinstance(at, list | tuple) else [] if at is None else [at]
    if at is not None and not listed:
        problems.append("at has no moments; leave it out for one at half of the run, or give penalty and keep=1.0")
    text = "at must be epochs from 1 on (whole numbers) or shares of the run between 0 and 1"
    problems += [f"{text}, got {moment!r}" for moment in listed if not _is_moment(moment)]
    if every is not None and not (is_whole(every) and every >= 1):
        problems.append(f"every must be a number of epochs from 1 on, got {every!r}")
    if at_steps is not None:
        fine = isinstance(at_steps, list | tuple) and at_steps and all(is_whole(s) and s >= 1 for s in at_steps)
        problems += [] if fine else [f"at_steps must be a list of optimizer steps from 1 on, got {at_steps!r}"]
    return problems


def _is_moment(value: object) -> bool:
    if is_whole(value):
        return value >= 1  # type: ignore[operator]
    return is_number(value) and 0 < value < 1  # type: ignore[operator]
