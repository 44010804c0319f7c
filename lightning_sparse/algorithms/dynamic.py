"""Dynamic sparse training: sparse from the first step to the last, with a mask that moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.algorithms.base import DropGrow
from lightning_sparse.core.algorithm import Masks
from lightning_sparse.core.allocation import deal
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule, Schedule

_ITOP = CosineSchedule(0.5, 0.005)


def _fill_in(algorithm: DropGrow, own: tuple[object, ...]) -> None:
    """Set what was left None: in the order of the fields, what the variant takes."""
    for name, value in zip(("every", "stop", "fraction", "regrow_dropped"), own, strict=False):
        if getattr(algorithm, name) is None:
            object.__setattr__(algorithm, name, value)  # the dataclass is frozen


@dataclass(frozen=True)
class SET(DropGrow):
    """Drop the smallest weights, grow at random (Mocanu et al. 2018, https://doi.org/10.1038/s41467-018-04316-3).

    ``variant="magnitude"`` is the form every later paper compares with: the smallest absolute values go, every 100
    steps, with RigL's schedule. ``variant="original"`` is the authors' own: after every epoch of the whole run, a
    constant share of the smallest positive and of the largest negative weights each, and whatever is zero; weights
    just dropped may be drawn again (here they then keep their value; in the authors' Keras code they restart at 0).
    ``variant="itop"`` explores more: half of the weights every 1500 steps of the whole run (Liu et al. 2021,
    https://arxiv.org/abs/2102.02887, for CIFAR with batches of 128); ``masks/explored`` of a
    :class:`DensityLogger` is their R_s.

    Args:
        variant: "magnitude", "original" or "itop".
        every: optimizer steps between updates, or "epoch"; None takes the variant's own.
        stop: last step at which masks may move (int), or share of the run (float); None takes the variant's own.
        fraction: share of the live weights to drop; None takes the variant's own.
        regrow_dropped: whether a weight just dropped may be grown at once; None takes the variant's own.
        replace_step: whether an update takes the place of the optimizer step.
        drop: "magnitude" or "contribution", as for :class:`DropGrow`.

    Example:
        >>> SET().every, SET(variant="original").every
        (100, 'epoch')
    """

    variant: Literal["magnitude", "original", "itop"] = "magnitude"
    every: int | Literal["epoch"] | None = None  # type: ignore[assignment]  # None until __post_init__ has resolved it
    stop: int | float | None = None  # type: ignore[assignment]
    fraction: Schedule | None = None  # type: ignore[assignment]
    regrow_dropped: bool | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in what the variant decides, then check."""
        own: dict[str, tuple[object, ...]] = {
            "original": ("epoch", 1.0, ConstantSchedule(0.3), True),
            "itop": (1500, 1.0, _ITOP, False),
        }
        _fill_in(self, own.get(str(self.variant), (100, 0.75, CosineSchedule(0.3), False)))
        super().__post_init__()

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        known = self.variant in ("magnitude", "original", "itop")
        wrong = [] if known else [f"variant must be 'magnitude', 'original' or 'itop', got {self.variant!r}"]
        if self.variant == "original" and self.drop != "magnitude":
            wrong.append(f"variant='original' drops by magnitude, sign by sign; leave drop={self.drop!r} out")
        return wrong + super().problems()

    def needs_gradient(self, step: int) -> bool:
        """Only to drop by contribution: growth is random."""
        return self.drop == "contribution" and self.due(step)

    def grow_score(self, p: SparseParam) -> Tensor:
        """Chance, the same on every rank."""
        return p.uniform("grow")

    def rewire(self, p: SparseParam, share: float) -> Tensor:
        """Exchange a share of the weights; the original variant counts each sign by itself (a tile has none)."""
        if self.variant != "original" or p.pattern.tiled:
            return super().rewire(p, share)
        kept = torch.zeros_like(p.mask)
        for side in (p.mask & (p.weight > 0), p.mask & (p.weight < 0)):
            count = int(side.count_nonzero())
            kept |= p.shrink(p.weight.abs(), count - floor(share * count + 1e-9), side)
        n = p.live - int(kept.count_nonzero())
        room = n if self.regrow_dropped else p.size - p.live
        if n > room:  # a layer that is almost full: keep the best of what would have gone
            kept |= p.shrink(p.weight.abs(), n - room, p.mask & ~kept)
        if not self.regrow_dropped:  # and of a group of the pattern what it could not grow again
            first = torch.where(kept, torch.inf, p.weight.abs())
            kept |= p.shrink(first, int(kept.count_nonzero()), p.mask, ~p.mask)
        return self.regrow(p, kept, p.live - int(kept.count_nonzero()))


@dataclass(frozen=True)
class RigL(DropGrow):
    """Drop the smallest weights, grow where the dense gradient is largest.

    Source: Evci et al. 2020, https://arxiv.org/abs/1911.11134, algorithm 1. Differences from the authors' code, each a
    switch: an update follows the optimizer step (``replace_step=True``: takes its place), weights just dropped do not
    compete for growth (``regrow_dropped=True``: they do, and keep their value), nothing is drawn to break ties, and
    the first update comes after ``every`` steps, not at step 0. ``variant="itop"`` explores more: half of the weights
    every 4000 steps of the whole run (Liu et al. 2021, https://arxiv.org/abs/2102.02887, for CIFAR with batches of
    128); ``masks/explored`` of a :class:`DensityLogger` is their R_s.

    Args:
        every: optimizer steps between updates, or "epoch"; None takes the variant's own.
        stop: last step at which masks may move (int), or share of the run (float); None takes the variant's own.
        fraction: share of the live weights to drop, from the first step to ``stop``; None takes the variant's own.
        regrow_dropped: whether a weight just dropped may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        drop: "magnitude" or "contribution", as for :class:`DropGrow`.
        variant: "paper" or "itop".

    Example:
        >>> RigL(every=200, stop=10_000, fraction=CosineSchedule(0.5)).due(400)
        True
        >>> RigL(variant="itop").every, RigL(variant="itop").fraction
        (4000, CosineSchedule(start=0.5, end=0.005))
    """

    every: int | Literal["epoch"] | None = None  # type: ignore[assignment]  # None until __post_init__ has resolved it
    stop: int | float | None = None  # type: ignore[assignment]
    fraction: Schedule | None = None  # type: ignore[assignment]
    variant: Literal["paper", "itop"] = "paper"

    def __post_init__(self) -> None:
        """Fill in what the variant decides, then check."""
        _fill_in(self, (4000, 1.0, _ITOP) if self.variant == "itop" else (100, 0.75, CosineSchedule(0.3)))
        super().__post_init__()

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        known = self.variant in ("paper", "itop")
        return ([] if known else [f"variant must be 'paper' or 'itop', got {self.variant!r}"]) + super().problems()

    def grow_score(self, p: SparseParam) -> Tensor:
        """The magnitude of the dense gradient."""
        return p.grad.abs()

    def training_flops(self, sparse: float, dense: float) -> float:
        """A dense gradient once in ``every + 1`` steps (Evci et al. 2020, appendix H)."""
        every = self.every if isinstance(self.every, int) else 0
        if not every:
            return 3 * sparse  # once an epoch: too seldom to count
        return (3 * sparse * every + 2 * sparse + dense) / (every + 1)


@dataclass(frozen=True)
class SparseMomentum(DropGrow):
    """Drop the smallest weights, move budget to layers with large momentum, grow where momentum is largest.

    After every epoch each layer drops the same share; what was dropped is dealt to the layers by the mean magnitude of
    the momentum of their live weights, and grown where the momentum of dead weights is largest. Source: Dettmers &
    Zettlemoyer 2019, https://arxiv.org/abs/1907.04840, algorithm 2. Differences from the authors' code: the total is
    exact (theirs is steered towards it); momentum is an exponential average of the dense gradients kept here, as the
    optimizer's own is masked; a grown weight starts without momentum.

    Costs one dense float32 tensor a layer (in checkpoints too) and the dense gradient at every step.

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: last step at which masks may move: optimizer steps (int), or a share of the run (float).
        fraction: share of the live weights to drop, from the first step to ``stop``.
        regrow_dropped: whether a weight just dropped may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        drop: "magnitude" or "contribution", as for :class:`DropGrow`.
        beta: decay of the average, in [0, 1).

    Example:
        >>> SparseMomentum().fraction
        CosineSchedule(start=0.5, end=0.005)
    """

    moves_budget: ClassVar[bool] = True

    every: int | Literal["epoch"] = "epoch"
    stop: int | float = 1.0
    fraction: Schedule = CosineSchedule(0.5, 0.005)
    beta: float = 0.9

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        wrong = [] if 0 <= self.beta < 1 else [f"beta must be in [0, 1), got {self.beta}"]
        return super().problems() + wrong

    def needs_gradient(self, step: int) -> bool:
        """Always, until masks stop: the average runs over every step."""
        return step <= self.stop

    def observe(self, params: Sequence[SparseParam], step: int) -> None:
        """Average the dense gradients."""
        for p in params:
            if "momentum" not in p.state:
                p.state["momentum"] = torch.zeros_like(p.grad, dtype=torch.float32)
            p.state["momentum"].lerp_(p.grad.float(), 1 - self.beta)

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The average of the dense gradient."""
        return {"momentum": tuple(p.mask.shape)}

    def grow_score(self, p: SparseParam) -> Tensor:
        """The magnitude of the dense momentum."""
        return p.state["momentum"].abs()

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Drop in every layer, deal the total to the layers by mean momentum, grow."""
        params = [p for p in params if "momentum" in p.state]  # a layer that never had a gradient stays as it is
        share = self.fraction(step, int(self.stop))
        # one stays in every layer, which might be dealt nothing
        left = [max(p.least, p.live - floor(share * p.live / p.unit + 1e-9) * p.unit) for p in params]
        kept = {p.name: p.keep(self.drop_score(p), k, p.mask) for p, k in zip(params, left, strict=True)}
        count = {name: int(mask.count_nonzero()) for name, mask in kept.items()}
        room = [p.size - (count[p.name] if self.regrow_dropped else p.live) for p in params]
        dropped = max(0, sum(p.target - count[p.name] for p in params))
        if dropped > sum(room):  # almost dense: there is no room to move everything
            return {p.name: self.rewire(p, share) for p in params}
        means = [float(self.grow_score(p)[p.mask].mean()) for p in params]
        grown = deal(means, dropped, [0] * len(params), room, [p.unit for p in params])
        return {p.name: self.regrow(p, kept[p.name], n) for p, n in zip(params, grown, strict=True)}

    def training_flops(self, sparse: float, dense: float) -> float:
        """A dense gradient at every step: 2 f_s + f_d (Evci et al. 2020, appendix H)."""
        return 2 * sparse + dense
