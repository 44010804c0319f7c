"""Thresholds that are learned: what is smaller than its layer's threshold is zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Masks, keep_budget, ramp
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.param import SparseParam
from lightning_sparse.reparam.base import RAMP, Ramped

_LARGEST = 1 - 1e-6  # of thresholds: 1 has no finite logit
_BELOW = 1 - 1e-3  # how far below the smallest weight that stays a threshold must be


@dataclass(frozen=True)
class STR(Ramped):
    """Soft threshold weights, with a threshold a layer that is learned with them.

    A forward pass sees ``sign(w) * relu(|w| - sigmoid(s))``, with one ``s`` a layer (Kusupati et al. 2020,
    https://arxiv.org/abs/2002.03231, eq. 4 to 6). The loss moves ``s`` through the live weights, weight decay pulls it
    towards 0, where the threshold is a half; how far it gets decides the density, which is an outcome. With
    ``density=`` the thresholds are steered: at every update the weights that stand out most above their threshold, in
    ``|w| - sigmoid(s)``, stay, as many as a cubic ramp (eq. 1 of Zhu & Gupta 2017) allows. All thresholds rise by what
    that needs, and none of them over a weight that stays. After ``stop`` weights are plain and masks fixed.

    Differences from the authors' code: support moves every ``every`` steps (theirs: at every step); the steering is
    ours. ``s`` is stepped by gradient descent with the learning rate and momentum of its layer's parameter group.

    Args:
        every: optimizer steps between updates of the masks, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
        start: first value of ``s``; the authors' -3200 is a threshold of exactly 0, from which only decay leads away.
        decay: weight decay of ``s``; None takes that of its layer's parameter group, as the authors do.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), STR(stop=1000), 0.2)
        >>> engine.density(), engine.params["weight"].state["threshold"].item()
        (1.0, -3200.0)
    """

    start: float = -3200.0
    decay: float | None = None

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if self.decay is not None and not self.decay >= 0:
            found.append(f"decay must not be negative, got {self.decay!r}")
        return found

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """One threshold a layer."""
        for p in params:
            p.state["threshold"] = torch.tensor(self.start, dtype=torch.float32, device=p.mask.device)
            p.state["velocity"] = torch.zeros_like(p.state["threshold"])

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """One threshold and its momentum."""
        return {"threshold": (), "velocity": ()}

    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """``sign(w) * relu(|w| - sigmoid(s))``."""
        assert p.latent is not None
        threshold = p.state["threshold"].sigmoid().to(p.latent.dtype)
        return p.latent.sign() * (p.latent.abs() - threshold).relu_()

    def latent_of(self, p: SparseParam, changed: Tensor) -> Tensor:
        """What is shown, with the threshold added again."""
        assert p.latent is not None
        threshold = p.state["threshold"].sigmoid().to(p.latent.dtype)
        return torch.where(changed, p.weight.sign() * (p.weight.abs() + threshold), p.latent)

    def pull_back(self, p: SparseParam, gradient: Tensor) -> Tensor:
        """Through where the weight is above its threshold; ``s`` gets what its layer's weights lose."""
        assert p.latent is not None
        threshold = p.state["threshold"].sigmoid()
        passed = gradient * ((p.latent.abs() > threshold) & p.mask)
        slope = threshold * (1 - threshold)
        p.scratch["threshold"] = -slope * (passed.float() * p.latent.sign()).sum()
        return passed

    def learn(self, p: SparseParam, group: Mapping[str, Any], scale: Tensor | None) -> None:
        """A step of gradient descent on ``s``."""
        s, velocity = p.state["threshold"], p.state["velocity"]
        gradient = p.scratch.get("threshold", torch.zeros_like(s))
        decay = group.get("weight_decay", 0.0) if self.decay is None else self.decay
        gradient = (gradient if scale is None else gradient / scale).nan_to_num(0.0, 0.0, 0.0) + decay * s
        velocity.mul_(group.get("momentum", 0.0)).add_(gradient)
        s.sub_(velocity * group["lr"])

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """What is above its threshold lives; a density that was asked for moves the thresholds first."""
        above = {p.name: _magnitude(p) - p.state["threshold"].sigmoid() for p in params}
        if params[0].free:
            masks = {p.name: above[p.name] > 0 for p in params}
            return {p.name: masks[p.name] if masks[p.name].any() else p.keep(_magnitude(p), 1, p.mask) for p in params}
        kept = keep_budget(params, above, ramp(params, RAMP(step, int(self.stop))))
        together = params[0].scope == "global"
        for group in [params] if together else [[p] for p in params]:
            rise = _rise([above[p.name] for p in group], sum(int(kept[p.name].count_nonzero()) for p in group))
            for p in group:
                _steer(p, kept[p.name], rise)
        return kept

    def training_flops(self, sparse: float, dense: float) -> float:
        """As a ramp that spends a quarter of the way down (the mean of (1 - p)^3); dead weights need no gradient."""
        if not isinstance(self.stop, float):
            return 3 * sparse
        return 3 * (self.stop * (sparse + (dense - sparse) / 4) + (1 - self.stop) * sparse)


def _magnitude(p: SparseParam) -> Tensor:
    assert p.latent is not None
    return p.latent.abs().float()


def _rise(above: Sequence[Tensor], count: int) -> Tensor:
    """How far thresholds rise together, so that no more than ``count`` weights stand above them."""
    flat = torch.cat([part.flatten().to(above[0].device) for part in above])
    dropped = flat[~keep_top(flat, count, torch.ones_like(flat, dtype=torch.bool))]
    return torch.cat([dropped, flat.new_zeros(1)]).amax()


def _steer(p: SparseParam, kept: Tensor, rise: Tensor) -> None:
    """Move the threshold by ``rise``, and keep it below the weights that stay; a pattern may keep small ones."""
    s, magnitude = p.state["threshold"], _magnitude(p)
    now = s.sigmoid()
    smallest = magnitude.masked_fill(~kept | (magnitude == 0), torch.inf).amin()
    then = torch.minimum(now + rise.to(now.device), _BELOW * smallest)
    s.copy_(torch.where(then == now, s, then.clamp(max=_LARGEST).logit()))
