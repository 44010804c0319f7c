"""Always sparse, with the largest weights forward and a few more backward."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Masks
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.param import SparseParam
from lightning_sparse.reparam.base import Largest, magnitude


@dataclass(frozen=True)
class TopKAST(Largest):
    """Compute with the largest weights, learn these and a few more.

    Set A holds the largest weights of a layer, as many as its density allows: forward passes see them and zeros. Set B,
    ``backward`` times as many, gets gradients. Weights outside B keep their values unseen, and may come back. A penalty
    lets unused weights fade: its gradient is ``penalty * w`` in A and ``penalty * w / density`` in B outside A
    (Jayakumar et al. 2020, https://arxiv.org/abs/2106.03517, sections 2.1 to 2.3). Latent weights are dense: memory is
    not saved here, FLOPs are.

    Differences: the sets are those of the layer's density (per layer, by magnitude); the optimizer's own weight decay
    and momentum do not move weights outside B; the penalty is of the squared norm, as in the paper (a public
    implementation takes the norm itself).

    Args:
        every: optimizer steps between new choices of the sets, or "epoch"; the paper finds 100 as good as 1.
        stop: the step after which sets are fixed and weights plain: optimizer steps (int) or share of the run (float).
        backward: size of B in sizes of A, at least 1; the paper's pairs are 20 and 50 %, 10 and 20 %, 5 and 10 %.
        penalty: strength of the penalty, in units of the loss.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), TopKAST(stop=1000), 0.2)
        >>> engine.density(), int(engine.params["weight"].state["backward"].sum())
        (0.2, 40)
    """

    stop: int | float = 1.0
    backward: float = 2.0
    penalty: float = 1e-4

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if not self.backward >= 1:
            found.append(f"backward must be at least 1 (of the forward density), got {self.backward!r}")
        if not self.penalty >= 0:
            found.append(f"penalty must not be negative, got {self.penalty!r}")
        return found

    def needs_gradient(self, step: int) -> bool:
        """Always: weights of B outside A have to learn."""
        return step <= self.stop

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """Set B, for masks that come from elsewhere."""
        self._choose(params)

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """The largest of the first weights."""
        return self._choose(params)

    def pull_back(self, p: SparseParam, gradient: Tensor) -> Tensor:
        """The gradient, in B."""
        return gradient * p.state["backward"]

    def penalty_gradient(self, p: SparseParam) -> Tensor | None:
        """The penalty's gradient: weak in A, strong in B outside A."""
        assert p.latent is not None
        if not self.penalty:
            return None
        outside = p.state["backward"] & ~p.mask
        return self.penalty * (p.latent * p.mask + p.latent * outside / p.density)

    def absorb(self, p: SparseParam, stepped: Tensor) -> None:
        """What is outside B has not moved."""
        assert p.latent is not None
        p.latent.copy_(torch.where(p.state["backward"], stepped, p.latent))

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Choose both sets anew."""
        return self._choose(params)

    def resized(self, p: SparseParam, share: float) -> None:
        """A stays in B."""
        if "backward" in p.state:
            p.state["backward"] |= p.mask

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The set B."""
        return {"backward": tuple(p.mask.shape)}

    def training_flops(self, sparse: float, dense: float) -> float:
        """Forward and towards the inputs with A, towards the weights with B."""
        return 2 * sparse + min(dense, self.backward * sparse)

    def _choose(self, params: Sequence[SparseParam]) -> Masks:
        masks = self.largest(params)
        for p in params:
            if p.latent is not None:
                some = int(masks[p.name].count_nonzero())
                more = min(p.size, round(self.backward * some))
                first = magnitude(p).masked_fill(masks[p.name], torch.inf)  # A is in B, whatever the pattern
                p.state["backward"] = keep_top(first, more, torch.ones_like(p.mask))
        return masks
