"""Dynamic sparse training whose layers share one budget: one threshold prunes, survivors decide who grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sparse.algorithms.base import DropGrow
from lightning_sparse.core.algorithm import Masks
from lightning_sparse.core.allocation import AllocationName, deal
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import ConstantSchedule, Schedule

_LEAST, _MOST = 2.0**-100, 2.0**100  # the threshold stays a normal number: from zero no doubling leads back


@dataclass(frozen=True)
class DSR(DropGrow):
    """Drop what is below one threshold for all layers, grow at random, most where most has survived.

    The threshold adapts: it halves when an update drops more than 1.1 times the wanted number of weights, and doubles
    when it drops less than 0.9 times that. What was dropped is dealt to the layers in proportion to their surviving
    weights, as far as they have free places, and grown at random. The total is exact, and every layer keeps one weight
    at least. Source: Mostafa & Wang 2019, https://arxiv.org/abs/1902.05967, algorithm 1.

    Differences from the authors' code: the wanted number is a share of the live weights (their 600 for an MLP at 2 %
    density are 11 %; 20 000 and 400 000 for WRN-28-2 and ResNet-50 8 to 16 %); ``every`` is constant (they go from 100
    to 800 steps in four stages); what rounding leaves over goes to the largest remainders, not to a layer drawn at
    random; of a layer that would lose all, the largest weight stays, not the first. Where more falls below the
    threshold than can be grown, each layer drops no more than it has free places.

    The threshold is kept with each layer's state, as a float32 number, and saved in checkpoints. Layers of several
    optimizers have a threshold and a budget for each optimizer.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: last step at which masks may move: optimizer steps (int), or share of the run (float).
        fraction: wanted share of all live weights that an update drops, from the first step to ``stop``.
        regrow_dropped: whether a weight just dropped may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        threshold: at the start; positive.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), DSR(every=5, stop=20), 0.2)
        >>> engine.density(), DSR().fraction
        (0.2, ConstantSchedule(value=0.1))
    """

    allocation: ClassVar[AllocationName] = "uniform"
    moves_budget: ClassVar[bool] = True

    stop: int | float = 0.95
    fraction: Schedule = ConstantSchedule(0.1)
    threshold: float = 1e-3

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        fine = isfinite(self.threshold) and self.threshold > 0
        return super().problems() + ([] if fine else [f"threshold must be a positive number, got {self.threshold}"])

    def needs_gradient(self, step: int) -> bool:
        """Never: growth is random."""
        return False

    def drop_score(self, p: SparseParam) -> Tensor:
        """The magnitude, which the threshold is compared with."""
        return p.weight.abs()

    def grow_score(self, p: SparseParam) -> Tensor:
        """Chance, the same on every rank."""
        return p.uniform("grow")

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Drop below the threshold, adapt it, deal the total to the layers by what has survived, grow."""
        height = self._height(params)
        small = [int((p.mask & (self.drop_score(p) < height)).count_nonzero()) for p in params]
        dropped = [min(n, p.live - 1) for n, p in zip(small, params, strict=True)]
        self._adapt(params, height, sum(dropped), self.fraction(step, int(self.stop)) * sum(p.live for p in params))
        free = [p.size - p.live for p in params]
        if not self.regrow_dropped and sum(dropped) + sum(p.unit - 1 for p in params) > sum(free):
            dropped = [min(n, room) for n, room in zip(dropped, free, strict=True)]
        kept = [
            p.shrink(self.drop_score(p), p.live - n, p.mask, None if self.regrow_dropped else ~p.mask)
            for p, n in zip(params, dropped, strict=True)
        ]
        counts = self._deal(params, [int(mask.count_nonzero()) for mask in kept])
        rows = zip(params, kept, counts, strict=True)
        return {p.name: self.regrow(p, mask, n - int(mask.count_nonzero())) for p, mask, n in rows}

    def _deal(self, params: Sequence[SparseParam], survivors: Sequence[int]) -> list[int]:
        """The counts after growth: the total in proportion to the survivors, as far as there are free places."""
        lower, upper = [], []
        for p, n in zip(params, survivors, strict=True):
            lower.append(-(-max(n, p.least) // p.unit) * p.unit)
            upper.append((p.size if self.regrow_dropped else n + p.size - p.live) // p.unit * p.unit)
        total = sum(p.live for p in params)
        return deal([float(n) for n in survivors], total, lower, upper, [p.unit for p in params])

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The present threshold."""
        return {"threshold": ()}

    def _height(self, params: Sequence[SparseParam]) -> float:
        """The present threshold; a layer that joined later takes that of the others."""
        known = [p.state["threshold"] for p in params if "threshold" in p.state]
        return float(known[0]) if known else self.threshold

    def _adapt(self, params: Sequence[SparseParam], height: float, dropped: int, wanted: float) -> None:
        if dropped > 1.1 * wanted:
            height = max(height / 2, _LEAST)
        elif dropped < 0.9 * wanted:
            height = min(height * 2, _MOST)
        for p in params:
            p.state["threshold"] = torch.tensor(height, dtype=torch.float32, device=p.mask.device)
