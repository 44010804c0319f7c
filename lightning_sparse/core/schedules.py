"""How a number moves over the optimizer steps of a run."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.values import mistyped


class Schedule(ABC):
    """A number as a function of the optimizer step.

    Subclasses define ``at(share)``, the value after that share of the way. A schedule holds its last value after
    ``stop``.
    """

    def __call__(self, step: int, stop: int) -> float:
        """The value at optimizer step ``step`` of a schedule that ends at step ``stop``."""
        return self.at(1.0 if step >= stop else max(step, 0) / stop)

    @abstractmethod
    def at(self, share: float) -> float:
        """The value after ``share`` of the way, in [0, 1]."""

    def reached(self) -> list[float]:
        """Values on the way, ends included, by which to tell what the schedule comes to."""
        return [self.at(share / 64) for share in range(65)]


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """Always ``value``.

    Args:
        value: the number.

    Example:
        >>> ConstantSchedule(0.3)(step=7, stop=100)
        0.3
    """

    value: float

    def __post_init__(self) -> None:
        """Check what was given."""
        raise_problems(mistyped(self), type(self).__name__)

    def at(self, share: float) -> float:
        """The value, whatever the share."""
        return self.value


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from ``start`` to ``end``: the drop fraction of RigL (Evci et al. 2020, eq. 1).

    Args:
        start: value at step 0.
        end: value at ``stop`` and after.

    Example:
        >>> [round(CosineSchedule(0.3)(step, stop=100), 6) for step in (0, 25, 50, 75, 100)]
        [0.3, 0.256066, 0.15, 0.043934, 0.0]
    """

    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        """Check what was given."""
        raise_problems(mistyped(self), type(self).__name__)

    def at(self, share: float) -> float:
        """``end + (start - end) / 2 * (1 + cos(pi * share))``."""
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """A straight line from ``start`` to ``end``.

    Args:
        start: value at step 0.
        end: value at ``stop`` and after.

    Example:
        >>> LinearSchedule(1.0, 0.5)(step=50, stop=100)
        0.75
    """

    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        """Check what was given."""
        raise_problems(mistyped(self), type(self).__name__)

    def at(self, share: float) -> float:
        """``start + (end - start) * share``."""
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class CubicSchedule(Schedule):
    """Fast at first, slow at the end: the density of gradual pruning (Zhu & Gupta 2017, eq. 1).

    Args:
        start: value at step 0.
        end: value at ``stop`` and after.

    Example:
        >>> [round(1 - CubicSchedule(1.0, 0.1)(step, stop=100), 6) for step in (0, 25, 50, 75, 100)]
        [0.0, 0.520312, 0.7875, 0.885938, 0.9]
    """

    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        """Check what was given."""
        raise_problems(mistyped(self), type(self).__name__)

    def at(self, share: float) -> float:
        """``end + (start - end) * (1 - share) ** 3``."""
        return self.end + (self.start - self.end) * (1 - share) ** 3


@dataclass(frozen=True)
class StagedSchedule(Schedule):
    """A number that changes in stages, and holds in between.

    Args:
        values: one for each stage.
        until: the share of the way at which each stage but the last ends; the next begins there.

    Example:
        >>> stages = StagedSchedule((0.2, 0.1, 0.0), until=(0.75, 1.0))
        >>> [stages(step, stop=100) for step in (0, 74, 75, 99, 100)]
        [0.2, 0.2, 0.1, 0.1, 0.0]
    """

    values: tuple[float, ...]
    until: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check what was given, all at once."""
        raise_problems(mistyped(self), "StagedSchedule")
        problems = []
        if len(self.values) != len(self.until) + 1:
            problems.append(f"needs one value more than ends of stages, got values={self.values}, until={self.until}")
        if list(self.until) != sorted(set(self.until)) or not all(0 < share <= 1 for share in self.until):
            problems.append(f"until must be shares in (0, 1] that rise, got {self.until}")
        raise_problems(problems, "StagedSchedule")

    def at(self, share: float) -> float:
        """The value of the stage that ``share`` lies in."""
        return self.values[bisect_right(self.until, share)]

    def reached(self) -> list[float]:
        """The value of every stage, however short."""
        return list(self.values)
