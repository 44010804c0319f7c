"""Criteria from gradients: what a factor on a channel would change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sparse.channels.criterion import Asks, Criterion
from lightning_sparse.channels.parts import Part


class _Gate(Criterion):
    """Squared derivative with respect to a factor on the channels, as their readers see them.

    A factor on the inputs of a layer has the derivative ``sum(w * dL/dw)`` over the weights that read the channel. All
    readers of an axis get the same factor, so their sums add up before the square. An axis that no weight reads
    (queries and keys) gets its factor where it is produced.
    """

    def score(self, part: Part) -> Tensor | None:
        """``sum(w * g)`` for each channel."""
        if part.grad is None:
            return None
        wide = torch.promote_types(part.rows.dtype, torch.float32)
        return (part.rows.to(wide) * part.grad.to(wide)).flatten(1).sum(1)

    def join(self, parts: Sequence[Part], scores: Tensor) -> Tensor:
        """The square of the sum over readers, or where there are none, norms, or producers with their biases."""
        for roles in (("in",), ("norm",), ("out", "bias"), ("other",)):
            rows = [i for i, part in enumerate(parts) if part.role in roles]
            if rows:
                return scores[rows].sum(0).square()
        raise AssertionError("a part has a role")

    def blind(self) -> str:
        return "no gradient reaches its weights"


@dataclass(frozen=True)
class Taylor(_Gate):
    """How much the loss changes to first order when a channel is scaled away, squared: ``(sum w * g)²``.

    Of the variants of Molchanov et al. 2019 (https://arxiv.org/abs/1906.10771) the gate's: the derivative of the loss
    with respect to a factor on the channel, squared in each mini-batch, then averaged. Gradients that arrive are those
    of batches: averaged over samples (and accumulated batches and ranks) before the square, as theirs.

    Differences from the authors' code: the factor stands at the inputs of all layers that read the channel, so nothing
    is added to the model and residual streams need no correction factors; no running average.

    Example:
        >>> Taylor().asks
        'gradients'
    """

    asks: ClassVar[Asks] = "gradients"


@dataclass(frozen=True)
class Sensitivity(_Gate):
    """How much the model's output changes to first order when a channel is scaled away, squared and summed.

    From inputs alone, without targets: for random signs ``r`` the square of ``d(r · output)/d(factor)`` has the squared
    norm of the output's derivative as its mean (Hutchinson 1989, https://doi.org/10.1080/03610918908812806), over all
    samples and outputs together; ``projections`` of them are averaged.

    Args:
        projections: how many random signs to average over; each costs a backward pass.

    Example:
        >>> Sensitivity().projections
        8
    """

    asks: ClassVar[Asks] = "inputs"
    projections: int = 8
