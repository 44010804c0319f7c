"""Training that starts dense and ends sparse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lightning_sparse.algorithms.base import Periodic, ends_early
from lightning_sparse.core.algorithm import Masks, everything, keep_budget
from lightning_sparse.core.allocation import apportion
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import CubicSchedule

if TYPE_CHECKING:
    from typing_extensions import Self

_RAMP = CubicSchedule(1.0, 0.0)


@dataclass(frozen=True)
class GMP(Periodic):
    """Gradual magnitude pruning: the smallest weights go, fast at first, slowly at the end.

    Density falls from 1 along eq. 1 of Zhu & Gupta 2017 (https://arxiv.org/abs/1710.01878), each layer towards its own
    share (or, with ``allocation="global"``, over all layers together). A pruned weight does not come back: it is zero
    and gets no gradient. Implementations disagree here; the authors' TensorFlow code kept dense values that could
    return.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: the step at which the final density is reached: optimizer steps (int) or a share of the run (float).
        begin: the last step that is dense: optimizer steps (int, from 0) or a share of the run (float in [0, 1]).

    Example:
        >>> gmp = GMP(every=10, stop=100).planned(None, None)
        >>> [step for step in range(1, 120) if gmp.due(step)]
        [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    """

    only_falls: ClassVar[bool] = True

    begin: int | float = 0

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if type(self.begin) not in (int, float) or self.begin < 0 or (isinstance(self.begin, float) and self.begin > 1):
            found.append(f"begin must be optimizer steps or a share of the run in [0, 1], got {self.begin!r}")
        elif type(self.begin) is type(self.stop) and self.begin >= self.stop:
            found.append(f"begin must come before stop, got begin={self.begin}, stop={self.stop}")
        return found

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        plan = super().planned(total_steps, epoch_steps)
        begin = self.steps("begin", self.begin, total_steps) if self.begin else 0
        return replace(plan, begin=min(begin, int(plan.stop) - 1))

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        return ends_early("stop", self.stop, total_steps)

    def settled(self, step: int) -> bool:
        """From ``stop`` on."""
        return step >= self.stop

    def due(self, step: int) -> bool:
        """Every so often between ``begin`` and ``stop``, and at ``stop``: the final density is always reached."""
        return self.begin < step and (super().due(step) or step == self.stop)

    def density(self, step: int, target: float) -> float:
        """Density after ``step`` of what ends at ``target`` (Zhu & Gupta 2017, eq. 1)."""
        return target + (1 - target) * _RAMP(step - int(self.begin), int(self.stop) - int(self.begin))

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Everything lives."""
        return everything(params)

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Keep the largest live weights, as many as the schedule allows."""
        exact = [p.size * self.density(step, p.target / p.size) for p in params]
        live = [p.live for p in params]
        counts = apportion(exact, min(round(sum(exact)), sum(live)), live, lower=1)
        return keep_budget(params, {p.name: p.weight.abs() for p in params}, counts, live_only=True)

    def training_flops(self, sparse: float, dense: float) -> float:
        """Averaged over the run, where ``begin`` and ``stop`` are shares of it; else of the final density.

        The ramp spends a quarter of the way down: the mean of (1 - p)^3 is 1/4. A pruned weight needs no gradient here,
        so this is three forward passes; Evci et al. count a dense backward pass for authors who keep one.
        """
        if not isinstance(self.stop, float) or (self.begin and not isinstance(self.begin, float)):
            return 3 * sparse
        ramp = self.stop - self.begin
        return 3 * (self.begin * dense + ramp * (sparse + (dense - sparse) / 4) + (1 - self.stop) * sparse)
