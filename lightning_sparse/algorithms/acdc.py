"""Training that alternates between dense and sparse phases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning_sparse.algorithms.base import Periodic, ends_early
from lightning_sparse.core.algorithm import Masks, everything, keep_budget
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.param import SparseParam

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ACDC(Periodic):
    """Alternate compressed and decompressed phases; the first is dense, the last sparse.

    A compression keeps the largest weights, over all layers together (``allocation="global"``; with another each layer
    by itself). A decompression lets every weight live again: pruned ones come back at zero, with clean optimizer
    state. Source: Peste et al. 2021, https://arxiv.org/abs/2106.12379, algorithm 1. The defaults are those of the
    authors' ImageNet runs of 100 epochs: dense until 10, then phases of 5, sparse and dense in turn, a last dense phase
    from 75 to 85, then sparse. For CIFAR-100 (200 epochs) they take ``begin=0.05, every=0.1, stop=0.85, last=0.1``.
    Differences from their code: the count is exact, and no layer loses its last weight.

    Args:
        every: length of a phase: optimizer steps (int), a share of the run (float), or "epoch".
        stop: the last compression: optimizer steps (int) or a share of the run (float).
        begin: the first compression, after a dense start: optimizer steps (int) or a share of the run (float).
        last: length of the last dense phase, before ``stop``: optimizer steps (int) or a share of the run (float).

    Example:
        >>> acdc = ACDC().planned(100, None)
        >>> [step for step in range(1, 101) if acdc.due(step)]
        [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
        >>> [acdc.compressed(step) for step in (9, 10, 15, 70, 75, 84, 85)]
        [False, True, False, True, False, False, True]
    """

    allocation: ClassVar[AllocationName] = "global"

    every: int | float | Literal["epoch"] = 0.05  # type: ignore[assignment]  # a share, until it is planned
    stop: int | float = 0.85
    begin: int | float = 0.1
    last: int | float = 0.1

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if isinstance(self.every, float):
            found = [text for text in found if not text.startswith("every ")]
            if not 0 < self.every <= 1:
                found.append(
                    f"every must be a positive number of optimizer steps or 'epoch', got {self.every!r}, which as a "
                    "share of the run is not in (0, 1]"
                )
        wrong = [
            f"{name} must be optimizer steps (an int from 1) or a share of the run (a float in (0, 1]), got {value!r}"
            for name, value in (("begin", self.begin), ("last", self.last))
            if type(value) not in (int, float) or not value > 0 or (isinstance(value, float) and value > 1)
        ]
        alike = type(self.begin) is type(self.last) is type(self.stop)
        if not wrong and alike and self.begin + self.last > self.stop * (1 + 1e-9):
            wrong.append(
                f"begin and the last dense phase must fit before stop, got begin={self.begin}, last={self.last}, "
                f"stop={self.stop}"
            )
        return found + wrong

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        plan = super().planned(total_steps, epoch_steps)
        every = self.steps("every", plan.every, total_steps) if isinstance(plan.every, float) else plan.every
        stop = max(2, int(plan.stop))  # a run of one step has no room for both phases
        begin = min(self.steps("begin", self.begin, total_steps), stop - 1)
        last = min(self.steps("last", self.last, total_steps), stop - begin)
        return replace(plan, every=every, stop=stop, begin=begin, last=last)

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        return ends_early("stop", self.stop, total_steps)

    def settled(self, step: int) -> bool:
        """Whether the density after ``step`` is the final one."""
        return step >= self.stop

    def compressed(self, step: int) -> bool:
        """Whether the network is sparse after optimizer step ``step``."""
        if step >= self.stop or step < self.begin or step >= self.stop - self.last:
            return step >= self.stop
        return (step - self.begin) // float(self.every) % 2 == 0

    def why_dense(self) -> str:
        """See :meth:`Algorithm.why_dense`."""
        return "trains all weights in its dense phases"

    def due(self, step: int) -> bool:
        """Where one phase ends and another begins."""
        return isinstance(self.every, int) and self.compressed(step) != self.compressed(step - 1)

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Everything lives."""
        return everything(params)

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Keep the largest weights, or let all live."""
        if not self.compressed(step):
            return everything(params)
        return keep_budget(params, {p.name: p.weight.abs() for p in params}, [p.target for p in params])

    def training_flops(self, sparse: float, dense: float) -> float:
        """Averaged over the phases, where all their lengths are shares of the run; else of the final density."""
        if not all(isinstance(moment, float) for moment in (self.every, self.stop, self.begin, self.last)):
            return 3 * sparse
        steps = 10_000
        plan = self.planned(steps, None)
        share = sum(plan.compressed(step) for step in range(steps)) / steps
        return 3 * (share * sparse + (1 - share) * dense)
