"""When masks move, and how a fixed number of weights is dropped and grown."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import floor
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import CosineSchedule, Schedule
from lightning_sparse.core.values import mistyped

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Periodic(Algorithm):
    """An algorithm that moves masks every so often, until it stops.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: the last step at which masks may move: optimizer steps (int), or a share of the run in (0, 1] (float).

    Example:
        >>> plan = Periodic(every="epoch", stop=0.5).planned(total_steps=100, epoch_steps=20)
        >>> [step for step in range(1, 101) if plan.due(step)]
        [20, 40]
    """

    every: int | Literal["epoch"] = 100
    stop: int | float = 0.75

    def __post_init__(self) -> None:
        """Check what was given, all at once."""
        whole_steps(self)
        raise_problems(checked(self), type(self).__name__)

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = []
        if self.every != "epoch" and (type(self.every) is not int or self.every < 1):
            found.append(f"every must be a positive number of optimizer steps or 'epoch', got {self.every!r}")
        return found + wrong_moment("stop", self.stop)

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        every = self.every
        if every == "epoch":
            if not epoch_steps:
                raise ValueError(
                    f"{type(self).__name__}: every='epoch', but the length of an epoch is unknown; "
                    f"give every= in optimizer steps"
                )
            every = epoch_steps
        return replace(self, every=every, stop=self.steps("stop", self.stop, total_steps))

    def steps(self, name: str, moment: int | float, total_steps: int | None) -> int:
        """A moment of the run in optimizer steps; see :func:`in_steps`."""
        return in_steps(self, name, moment, total_steps)

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        if total_steps is None or any(self.due(step) for step in range(1, total_steps + 1)):
            return ""
        return (
            f"masks will never move: every={self.every}, stop={self.stop}, and the run has {total_steps} optimizer "
            "steps; give a smaller every="
        )

    def due(self, step: int) -> bool:
        """Whether masks move after optimizer step ``step``."""
        return isinstance(self.every, int) and step % self.every == 0 and step <= self.stop


@dataclass(frozen=True)
class DropGrow(Periodic):
    """Drop the worst live weights of each layer and grow as many dead ones; counts never change.

    A subclass says what is good: ``drop_score`` (the lowest live weights go) and ``grow_score`` (the highest dead
    weights come). Grown weights start at zero, with a clean optimizer state.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: the last step at which masks may move: optimizer steps (int), or a share of the run in (0, 1] (float).
        fraction: share of the live weights to drop, a schedule from the first step to ``stop``.
        regrow_dropped: whether a weight just dropped may be grown at once; it then keeps its value, as in the RigL
            authors' code. Default False: only weights that were dead before.
        replace_step: whether an update takes the place of the optimizer step, as in the RigL authors' code, instead
            of following it. Not for LBFGS, whose step takes many gradients.
        drop: "magnitude" (the smallest ``|w|`` go) or "contribution" (the smallest ``|w * g|``: what the loss would
            miss to first order, the score of SNIP), unless the algorithm has a score of its own.
    """

    fraction: Schedule = CosineSchedule(0.3)
    regrow_dropped: bool = False
    replace_step: bool = False
    drop: Literal["magnitude", "contribution"] = "magnitude"

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if not isinstance(self.fraction, Schedule):
            found.append(
                f"fraction must be a Schedule, got {self.fraction!r}: CosineSchedule(0.3) decays it to 0, "
                f"ConstantSchedule(0.3) holds it"
            )
        elif bad := [x for x in self.fraction.reached() if not 0 <= x <= 1]:
            found.append(f"fraction must stay in [0, 1], got {self.fraction}, which reaches {bad[0]}")
        if self.drop not in ("magnitude", "contribution"):
            found.append(f"drop must be 'magnitude' or 'contribution', got {self.drop!r}")
        elif self.drop != "magnitude" and type(self).drop_score is not DropGrow.drop_score:
            found.append(f"drop={self.drop!r}: {type(self).__name__} has a score of its own; leave drop out")
        return found

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """As :meth:`Periodic.planned`; a share ends before the last step, after which grown weights could not learn."""
        plan = super().planned(total_steps, epoch_steps)
        if total_steps is None or isinstance(self.stop, int):
            return plan
        return replace(plan, stop=min(plan.stop, max(1, total_steps - 1)))

    def needs_gradient(self, step: int) -> bool:
        """Whether scores may read ``p.grad``: at updates."""
        return self.due(step)

    def drop_score(self, p: SparseParam) -> Tensor:
        """Worth of the live weights; the lowest are dropped."""
        return p.weight.abs() if self.drop == "magnitude" else (p.weight * p.grad).abs()

    @abstractmethod
    def grow_score(self, p: SparseParam) -> Tensor:
        """Promise of the dead weights; the highest are grown."""

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Drop and grow in every layer."""
        share = self.fraction(step, int(self.stop))
        return {p.name: self.rewire(p, share) for p in params}

    def rewire(self, p: SparseParam, share: float) -> Tensor:
        """The mask after a share of the live weights (or as many as can be grown) was exchanged."""
        n = floor(share * p.live + 1e-9)
        n = n if self.regrow_dropped else min(n, p.size - p.live)
        if n == 0:
            return p.mask
        return self.exchange(p, p.mask, n)

    def exchange(self, p: SparseParam, mask: Tensor, n: int) -> Tensor:
        """``mask``, which is part of what lives, with ``n`` of its weights (or what its pattern lets go) for others."""
        live = int(mask.count_nonzero())
        kept = p.shrink(self.drop_score(p), live - n, mask, None if self.regrow_dropped else ~p.mask)
        return self.regrow(p, kept, live - int(kept.count_nonzero()))

    def regrow(self, p: SparseParam, kept: Tensor, n: int) -> Tensor:
        """``kept`` and ``n`` grown weights, in the pattern."""
        candidates = ~kept if self.regrow_dropped else ~p.mask
        return p.fill(kept, self.grow_score(p), int(kept.count_nonzero()) + n, candidates)


def in_steps(owner: Algorithm, name: str, moment: int | float, total_steps: int | None) -> int:
    """A moment of the run in optimizer steps.

    Raises:
        ValueError: if it is a share of a run whose length is unknown.

    Example:
        >>> in_steps(Algorithm(), "stop", 0.75, 1000), in_steps(Algorithm(), "stop", 300, None)
        (750, 300)
    """
    if isinstance(moment, int):
        return moment
    if total_steps is None:
        raise ValueError(
            f"{type(owner).__name__}: {name}={moment} is a share of the run, but the length of the run is unknown; "
            f"give {name}= as a number of optimizer steps"
        )
    return max(1, round(moment * total_steps))


def ends_early(name: str, moment: int | float, total_steps: int | None) -> str:
    """What to say of a run that ends before its final density is reached; empty when all is well.

    Args:
        name: of the hyper-parameter that says when it is reached.
        moment: its value, in optimizer steps.
        total_steps: optimizer steps of the run, or None when unknown.

    Example:
        >>> ends_early("stop", 90, 100), ends_early("stop", 90, None)
        ('', '')
        >>> ends_early("stop", 90, 80)
        'the run ends at step 80, before the final density at stop=90; give a smaller stop='
    """
    if total_steps is None or moment <= total_steps:
        return ""
    return f"the run ends at step {total_steps}, before the final density at {name}={moment}; give a smaller {name}="


def checked(algorithm: Periodic) -> list[str]:
    """All that is wrong with the hyper-parameters, values of another type than their annotation's included."""
    mismatched = mistyped(algorithm)
    try:
        found = algorithm.problems()
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # a comparison with what is no number
        if not mismatched:
            raise
        return mismatched
    return found + mistyped(algorithm, found)


def whole_steps(algorithm: Algorithm) -> None:
    """Take 200.0 optimizer steps for 200: a YAML's 200 may arrive so.

    Parsers of command lines try the types of ``int | float`` in an order that what ran before in the process can turn
    round, because Python keeps one object for equal unions.

    Example:
        >>> Periodic(stop=200.0).stop
        200
    """
    for field in fields(algorithm):  # type: ignore[arg-type]  # every algorithm is a dataclass
        value = getattr(algorithm, field.name)
        if isinstance(value, float) and 1 < value < 2**63 and value.is_integer() and "int" in str(field.type):
            object.__setattr__(algorithm, field.name, int(value))


def wrong_moment(name: str, value: int | float) -> list[str]:
    """What is wrong with a moment of the run; empty when all is well."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole and value >= 1) or (isinstance(value, float) and 0 < value <= 1):
        return []
    return [f"{name} must be optimizer steps (an int from 1) or a share of the run (a float in (0, 1]), got {value!r}"]
