"""What the engine asks of an algorithm."""

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lightning_sparse.core.allocation import AllocationName, apportion
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.param import SparseParam

if TYPE_CHECKING:
    from typing_extensions import Self

Masks = dict[str, Tensor]


class Algorithm(ABC):
    """Hyper-parameters and pure functions: which weights should live, given what is shown.

    Subclasses are frozen dataclasses. They never write weights, gradients or optimizer state; the engine does.
    """

    allocation: ClassVar[AllocationName] = "erk"  # where the user names none
    replace_step: bool = False

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """A copy with every share of the run resolved to optimizer steps.

        Args:
            total_steps: optimizer steps of the whole run, or None when unknown.
            epoch_steps: optimizer steps of an epoch, or None when unknown.

        Raises:
            ValueError: if a length that is unknown is needed.
        """
        return self

    def too_short(self, total_steps: int | None) -> str:
        """What will not happen in a run of that length, and the way out; empty when all is well."""
        return ""

    def due(self, step: int) -> bool:
        """Whether masks move after optimizer step ``step`` (the first is 1)."""
        return False

    def needs_gradient(self, step: int) -> bool:
        """Whether the dense gradient of optimizer step ``step`` is needed; asked before the forward."""
        return False

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """The first masks: random or the largest weights, as ``p.init`` says, at the planned counts."""
        scores = {p.name: p.weight.abs() if p.init == "magnitude" else p.uniform("init") for p in params}
        return keep_budget(params, scores, [p.target for p in params])

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """The masks after optimizer step ``step``; pure. Sees all parameters of an optimizer: budgets may move."""
        return {}

    def observe(self, params: Sequence[SparseParam], step: int) -> None:
        """Look at the dense gradients of step ``step``, where they were asked for; may write ``p.state``."""

    def training_flops(self, sparse: float, dense: float) -> float:
        """FLOPs to train on one sample, given the forward FLOPs of the sparse and of the dense model.

        The backward pass costs twice the forward (Evci et al. 2020, appendix H).
        """
        return 3 * sparse


def keep_budget(params: Sequence[SparseParam], scores: Masks, counts: Sequence[int], live_only: bool = False) -> Masks:
    """Masks of the best scores: layer by layer, or over all layers together under ``allocation="global"``.

    Args:
        params: the layers.
        scores: by name; larger is better.
        counts: how many to keep in each layer; under "global" only their sum counts.
        live_only: whether dead weights stay dead.

    Returns:
        Masks by name, with exactly ``sum(counts)`` live weights, at least one in every layer.
    """
    among = {p.name: p.mask if live_only else torch.ones_like(p.mask) for p in params}
    if not params or params[0].scope == "layer":
        pairs = zip(params, counts, strict=True)
        return {p.name: p.keep(scores[p.name], k, among[p.name]) for p, k in pairs}
    device = params[0].mask.device
    flat = torch.cat([scores[p.name].flatten().float().to(device) for p in params])
    allowed = torch.cat([among[p.name].flatten().to(device) for p in params])
    joint = torch.split(keep_top(flat, sum(counts), allowed), [p.size for p in params])
    ranked = [int(part.count_nonzero()) for part in joint]
    room = [int(among[p.name].count_nonzero()) for p in params]
    final = apportion([float(n) for n in ranked], sum(counts), room, lower=1)  # no layer may die
    return {p.name: p.keep(scores[p.name], k, among[p.name]) for p, k in zip(params, final, strict=True)}
