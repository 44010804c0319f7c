"""Sparse in every forward pass, dense in every gradient: straight through."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lightning_sparse.core.algorithm import Masks
from lightning_sparse.core.grouped import NM
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Pattern
from lightning_sparse.reparam.base import Largest


@dataclass(frozen=True)
class SRSTE(Largest):
    """Show the largest weights, pass gradients straight through to all, and let what is not shown decay.

    A forward pass sees the largest weights in the pattern, chosen anew after every step; the gradient of the shown
    weights is taken for that of all latent ones, plus ``penalty * w`` where nothing is shown, which calms the masks
    (Zhou et al. 2021, https://arxiv.org/abs/2102.04010, eq. 9). Made for N:M, its own pattern where none is given
    (2:4); works with any pattern and density. Needs the dense gradient at every step: it saves nothing in training, the
    sparse model is what it is for. After ``stop`` weights are plain and masks fixed.

    Differences from the authors' code: N:M groups run along the inputs of Linear too (theirs the same), layers that do
    not divide stay dense with a warning (theirs fails), biases are kept.

    Args:
        every: optimizer steps between new choices, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
        penalty: decay of the weights that are not shown; the authors' 2e-4.

    Example:
        >>> import torch
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(8, 2), SRSTE(stop=1000))
        >>> engine.masks["weight"].view(2, 2, 4).sum(2).tolist()
        [[2, 2], [2, 2]]
    """

    own_pattern: ClassVar[Pattern | None] = NM(2, 4)

    every: int | Literal["epoch"] = 1
    stop: int | float = 1.0
    penalty: float = 2e-4

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        wrong = [] if self.penalty >= 0 else [f"penalty must not be negative, got {self.penalty!r}"]
        return super().problems() + wrong

    def needs_gradient(self, step: int) -> bool:
        """Always: it goes straight through to every weight."""
        return step <= self.stop

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """The largest of the first weights."""
        return self.update(params, 0)

    def pull_back(self, p: SparseParam, gradient: Tensor) -> Tensor:
        """Straight through."""
        return gradient

    def penalty_gradient(self, p: SparseParam) -> Tensor | None:
        """Of the weights that are not shown."""
        assert p.latent is not None
        return self.penalty * p.latent * ~p.mask if self.penalty else None

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """The largest weights, as many as planned."""
        return self.largest(params)

    def training_flops(self, sparse: float, dense: float) -> float:
        """Forward and towards the inputs sparse, towards the weights dense."""
        return 2 * sparse + dense
