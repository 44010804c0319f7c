"""Until when weights are latent, and how a density that was asked for is reached on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sparse.algorithms.base import Periodic, ends_early
from lightning_sparse.core.algorithm import Masks, everything, keep_budget
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.latent import Latent
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import CubicSchedule

RAMP = CubicSchedule(1.0, 0.0)
_BELOW = 1 - 1e-3


@dataclass(frozen=True)
class UntilStop(Periodic, Latent):
    """Weights are latent until ``stop``, and plain from then on.

    Args:
        every: optimizer steps between updates of the masks, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
    """

    def holds(self, step: int) -> bool:
        """Until ``stop``."""
        return step < self.stop


@dataclass(frozen=True)
class Largest(UntilStop):
    """Shows the largest of the latent weights, as they are.

    Args:
        every: optimizer steps between updates of the masks, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
    """

    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """The latent weights; the mask does the rest."""
        assert p.latent is not None
        return p.latent

    def latent_of(self, p: SparseParam, changed: Tensor) -> Tensor:
        """What is shown; what is not stays smaller than all of it, or the next choice would undo what was written."""
        taken = super().latent_of(p, changed)
        smallest = taken.abs().masked_fill_(~p.mask, torch.inf).amin()
        hidden = taken.clamp(-_BELOW * smallest, _BELOW * smallest)
        return torch.where(changed.any() & ~p.mask, hidden, taken)

    def largest(self, params: Sequence[SparseParam]) -> Masks:
        """Masks of the largest weights, as many as planned."""
        return keep_budget(params, {p.name: magnitude(p) for p in params}, [p.target for p in params])


def magnitude(p: SparseParam) -> Tensor:
    """Of the latent weights, or of the weights themselves where these are plain."""
    return (p.weight if p.latent is None else p.latent).abs()


@dataclass(frozen=True)
class Ramped(UntilStop):
    """Begins with everything alive; the density is an outcome, or the end of a cubic ramp.

    Args:
        every: optimizer steps between updates of the masks, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
    """

    allocation: ClassVar[AllocationName] = "global"
    outcome: ClassVar[bool] = True

    def due(self, step: int) -> bool:
        """Every so often, and at ``stop``."""
        return super().due(step) or step == self.stop

    def settled(self, step: int) -> bool:
        """From ``stop`` on."""
        return step >= self.stop

    def unfinished(self, total_steps: int | None) -> str:
        """See :meth:`Latent.unfinished`."""
        return ends_early("stop", self.stop, total_steps)

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Everything lives."""
        return everything(params)
