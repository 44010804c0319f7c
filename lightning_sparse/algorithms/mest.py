"""Memory-economic sparse training: mutate by weight and gradient, grow at random, in stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite
from typing import Literal

from torch import Tensor

from lightning_sparse.algorithms.base import DropGrow, ends_early
from lightning_sparse.core.algorithm import Masks, first_score, keep_budget
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import Schedule, StagedSchedule


@dataclass(frozen=True)
class MEST(DropGrow):
    """Drop where weight and gradient together are smallest, grow at random, ever fewer.

    A live weight is worth ``|w| + lam * |g|``; the dense gradient is never looked at. Source: Yuan et al. 2021,
    https://arxiv.org/abs/2110.14032. ``variant="em"`` (elastic mutation): an update drops a share of each layer and
    grows as many. ``variant="em_s"`` (with a soft memory bound): an update drops down to the planned count and grows
    the share on top, so that new weights compete with old ones after they have learned; the first mask is as large,
    and the last update, at ``stop``, leaves the planned count. A layer that is almost full keeps the best of what it
    could not grow again.

    Shares are of the planned live weights: the authors' 2 %, then 1 %, then 0 of all weights at 90 % sparsity are 0.2,
    0.1 and 0, with stages that end at 90 and 120 of 160 epochs (their EM&S scripts take 0.5 and 0.25, their README 0.2
    and 0.1). The authors update every fifth epoch. Their published scripts leave ``lam`` at 0, which is SET with
    stages; the paper's score has a gradient in it, so the default here is 1. Weights just dropped may be drawn again in
    their code (``regrow_dropped=True``; there they restart at 0, here they keep their value).

    Args:
        every: optimizer steps between updates, or "epoch".
        stop: last step at which masks may move: optimizer steps (int), or share of the run (float).
        fraction: share of the planned live weights to exchange, from the first step to ``stop``.
        regrow_dropped: whether a weight just dropped may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        variant: "em" or "em_s".
        lam: weight of the gradient in the score; not negative.

    Example:
        >>> import torch
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), MEST(variant="em_s", every=5, stop=20), 0.2)
        >>> engine.density()  # a fifth more than planned, until step 15
        0.24
    """

    every: int | Literal["epoch"] = "epoch"
    fraction: Schedule = StagedSchedule((0.2, 0.1, 0.0), (0.75, 1.0))
    variant: Literal["em", "em_s"] = "em"
    lam: float = 1.0

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if self.variant not in ("em", "em_s"):
            found.append(f"variant must be 'em' or 'em_s', got {self.variant!r}")
        elif self.variant == "em_s" and isinstance(self.fraction, Schedule) and (end := self.fraction.at(1.0)) != 0:
            found.append(f"fraction must end at 0, else 'em_s' ends above the planned density; it ends at {end}")
        if not (isfinite(self.lam) and self.lam >= 0):
            found.append(f"lam must be a number from 0, got {self.lam}")
        return found

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        early = "" if self.variant == "em" else ends_early("stop", self.stop, total_steps)
        return early or super().too_short(total_steps)

    def settled(self, step: int) -> bool:
        """Whether the density after ``step`` is the final one."""
        return self.variant == "em" or step >= self.stop

    def due(self, step: int) -> bool:
        """Every so often; with a soft bound also at ``stop``: the planned density is always reached."""
        return super().due(step) or (self.variant == "em_s" and step == self.stop)

    def needs_gradient(self, step: int) -> bool:
        """At updates, if the score has a gradient in it."""
        return self.lam > 0 and self.due(step)

    def drop_score(self, p: SparseParam) -> Tensor:
        """``|w| + lam * |g|``."""
        magnitude = p.weight.abs()
        return magnitude if self.lam == 0 else magnitude + self.lam * p.grad.abs()

    def grow_score(self, p: SparseParam) -> Tensor:
        """Chance, the same on every rank."""
        return p.uniform("grow")

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """The first masks; with a soft bound larger than planned.

        Raises:
            ValueError: if layers compete for one budget, to which a soft bound cannot be added layer by layer.
        """
        if self.variant == "em":
            return super().init(params)
        if any(p.scope == "global" for p in params):
            raise ValueError("MEST: variant='em_s' adds to each layer's own count; take another allocation than global")
        scores = {p.name: first_score(p) for p in params}
        return keep_budget(params, scores, [_raised(p, self.fraction.at(0.0)) for p in params])

    def rewire(self, p: SparseParam, share: float) -> Tensor:
        """Exchange a share; or fall to the planned count and add the share to it."""
        if self.variant == "em":
            return super().rewire(p, share)
        count, base = _raised(p, share), min(p.live, p.target)
        n = count - base if self.regrow_dropped else min(count - base, p.size - p.live)
        return self.regrow(p, p.keep(self.drop_score(p), count - n, p.mask), n)

    def training_flops(self, sparse: float, dense: float) -> float:
        """Three forward passes; those of a soft bound averaged over the run, where ``stop`` is a share of it."""
        if self.variant == "em" or not isinstance(self.stop, float):
            return 3 * sparse
        extra = sum(self.fraction.at((i + 0.5) / 1000) for i in range(1000)) / 1000
        return 3 * min(dense, sparse * (1 + self.stop * extra))


def _raised(p: SparseParam, share: float) -> int:
    """The planned count and a share on top, as far as the layer goes."""
    extra = floor(share * p.target + 1e-9) // p.unit * p.unit
    return min(p.size // p.unit * p.unit, p.target + extra)
