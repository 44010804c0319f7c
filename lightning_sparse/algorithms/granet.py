"""Gradual pruning that regenerates: global magnitude pruning with a step of drop and grow after each prune."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.algorithms.base import DropGrow, ends_early
from lightning_sparse.core.algorithm import Masks, first_score, keep_budget, ramp
from lightning_sparse.core.allocation import AllocationName, deal, erk
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import CosineSchedule, CubicSchedule, Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

_RAMP = CubicSchedule(1.0, 0.0)


@dataclass(frozen=True)
class GraNet(DropGrow):
    """Prune gradually from half density (or from dense) to the planned one; each time regenerate a share.

    An update prunes the smallest weights, over all layers together, to the density of a cubic ramp. Then each layer
    drops a share of what is left and grows as many where the dense gradient is largest. After the ramp, at ``end``,
    layers keep their counts and regeneration goes on until ``stop``. Source: Liu et al. 2021,
    https://arxiv.org/abs/2106.10404, with the cubic ramp of Zhu & Gupta 2017 (eq. 1 from ``initial``, not from 1).

    Layers start with the shares that ERK gives them at ``initial``; with another allocation than the default "global",
    each layer falls from its own share, scaled up, to its own share. Where the planned density is above ``initial``,
    the ramp is level. The authors prune for 110 of 160 epochs of CIFAR (their scripts also for 80), or 30 of 100 of
    ImageNet, every 1000 or 4000 steps. Differences from their code: counts are exact (theirs lose what ties with the
    threshold) and the ramp ends at its density (theirs stops one update before); weights just pruned do not compete
    for growth (``regrow_dropped=True``: they do, and keep their value), so that a dense start grows nothing at its
    first update.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: last step at which masks may move: optimizer steps (int), or share of the run (float).
        fraction: share of the live weights of each layer to regenerate, from the first step to ``stop``.
        regrow_dropped: whether a weight just pruned may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        drop: "magnitude" or "contribution", as for :class:`DropGrow`.
        initial: density at the start, in (0, 1].
        begin: the last step at the initial density: optimizer steps (int, from 0) or a share of the run (float).
        end: the step at which the planned density is reached: optimizer steps (int) or a share of the run (float).

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), GraNet(every=5, stop=20, end=10), 0.1)
        >>> engine.density()
        0.5
    """

    allocation: ClassVar[AllocationName] = "global"
    only_falls: ClassVar[bool] = True

    every: int | Literal["epoch"] = 1000
    stop: int | float = 1.0
    fraction: Schedule = CosineSchedule(0.5, 0.005)
    initial: float = 0.5
    begin: int | float = 0
    end: int | float = 0.6875

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if not 0 < self.initial <= 1:
            found.append(f"initial must be a density in (0, 1], got {self.initial}")
        wrong = [
            f"{name} must be optimizer steps or a share of the run in [0, 1], got {value!r}"
            for name, value in (("begin", self.begin), ("end", self.end))
            if type(value) not in (int, float) or not value >= 0 or (isinstance(value, float) and value > 1)
        ]
        for early, late in () if wrong else (("begin", "end"), ("end", "stop")):
            first, last = getattr(self, early), getattr(self, late)
            if type(first) is type(last) and (first > last or (first == last and early == "begin")):
                wrong.append(f"{early} must come before {late}, got {early}={first}, {late}={last}")
        return found + wrong

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        plan = super().planned(total_steps, epoch_steps)
        end = min(self.steps("end", self.end, total_steps), int(plan.stop))
        begin = self.steps("begin", self.begin, total_steps) if self.begin else 0
        return replace(plan, begin=min(begin, end - 1), end=end)

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        return ends_early("end", self.end, total_steps) or super().too_short(total_steps)

    def settled(self, step: int) -> bool:
        """Whether the density after ``step`` is the final one."""
        return step >= self.end

    def due(self, step: int) -> bool:
        """Every so often after ``begin``, and at ``end``: the planned density is always reached."""
        return self.begin < step and (super().due(step) or step == self.end)

    def grow_score(self, p: SparseParam) -> Tensor:
        """The magnitude of the dense gradient."""
        return p.grad.abs()

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Masks at the initial density; the counts are kept, as the ramp starts from them."""
        masks = {}
        for p, count in zip(params, self._start(params), strict=True):
            p.state["start"] = torch.tensor(count, device=p.mask.device)
            masks[p.name] = p.keep(first_score(p), count, torch.ones_like(p.mask))
        return masks

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The count that the ramp starts from."""
        return {"start": ()}

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Prune to the ramp, then regenerate in each layer."""
        down = _RAMP(step - int(self.begin), int(self.end) - int(self.begin))
        start = [int(p.state["start"]) if "start" in p.state else p.live for p in params]
        counts = ramp(params, down, start, [p.live for p in params])
        pruned = keep_budget(params, {p.name: self.drop_score(p) for p in params}, counts, live_only=True)
        share = self.fraction(step, int(self.stop))
        return {p.name: self.regenerate(p, pruned[p.name], share) for p in params}

    def resized(self, p: SparseParam, share: float) -> None:
        """The ramp starts from the same share of a weight that has lost channels."""
        if "start" in p.state:
            count = min(max(round(int(p.state["start"]) * share), p.target), p.size)
            p.state["start"] = torch.tensor(count, device=p.mask.device)

    def regenerate(self, p: SparseParam, pruned: Tensor, share: float) -> Tensor:
        """As many weights as in ``pruned``, of which a share (or as many as can be grown) is exchanged."""
        count = int(pruned.count_nonzero())
        n = floor(share * count + 1e-9)
        n = n if self.regrow_dropped else min(n, p.size - p.live)
        kept = p.shrink(self.drop_score(p), count - n, pruned, None if self.regrow_dropped else ~p.mask)
        return self.regrow(p, kept, count - int(kept.count_nonzero()))

    def training_flops(self, sparse: float, dense: float) -> float:
        """A dense gradient once in ``every + 1`` steps, as RigL's; the ramp averaged, where its ends are shares.

        The initial FLOPs are taken as ``initial`` of dense ones; a ramp spends a quarter of the way down.
        """
        forward = sparse
        if isinstance(self.end, float) and (not self.begin or isinstance(self.begin, float)):
            extra = max(0.0, self.initial * dense - sparse)
            forward += extra * (self.begin + (self.end - self.begin) / 4)
        every = self.every if isinstance(self.every, int) else 0
        return (3 * forward * every + 2 * forward + dense) / (every + 1) if every else 3 * forward

    def _start(self, params: Sequence[SparseParam]) -> list[int]:
        """Counts at the initial density; at least those planned in the end, together."""
        size, units = sum(p.size for p in params), [p.unit for p in params]
        upper = [p.size // p.unit * p.unit for p in params]
        total = min(max(round(self.initial * size), sum(p.target for p in params)), sum(upper))
        if params[0].scope == "layer":  # every layer falls by the same factor, or from dense
            lower = [p.target for p in params]
            return deal([p.density * p.size for p in params], total, lower, upper, units)
        shares = erk({p.name: p.mask.shape for p in params}, total / size)
        return deal([shares[p.name] * p.size for p in params], total, [p.least for p in params], upper, units)
