"""Thresholds that are learned: what is smaller than its layer's threshold is zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_sparse.algorithms.base import Periodic
from lightning_sparse.core.algorithm import Masks, keep_budget, ramp
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.latent import Latent
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.schedules import CubicSchedule

_RAMP = CubicSchedule(1.0, 0.0)
_LARGEST = 1 - 1e-6  # a magnitude of 1 has no finite logit


@dataclass(frozen=True)
class STR(Periodic, Latent):
    """Soft threshold weights, with a threshold a layer that is learned with them.

    A forward pass sees ``sign(w) * relu(|w| - sigmoid(s))``, with one ``s`` a layer (Kusupati et al. 2020,
    https://arxiv.org/abs/2002.03231, eq. 4 to 6). The loss moves ``s`` through the live weights, weight decay pulls it
    towards 0, where the threshold is a half; how far it gets decides the density, which is an outcome. With
    ``density=`` the thresholds are steered: at every update the weights that stand out most above their threshold stay,
    as many as a cubic ramp (eq. 1 of Zhu & Gupta 2017) allows, and a threshold moves just as far as that needs. After
    ``stop`` weights are plain and masks fixed.

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

    allocation: ClassVar[AllocationName] = "global"
    outcome: ClassVar[bool] = True

    start: float = -3200.0
    decay: float | None = None

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if self.decay is not None and not self.decay >= 0:
            found.append(f"decay must not be negative, got {self.decay!r}")
        return found

    def due(self, step: int) -> bool:
        """Every so often, and at ``stop``."""
        return super().due(step) or step == self.stop

    def holds(self, step: int) -> bool:
        """Until ``stop``."""
        return step < self.stop

    def settled(self, step: int) -> bool:
        """After ``stop``."""
        return step >= self.stop

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """One threshold a layer."""
        for p in params:
            p.state["threshold"] = torch.tensor(self.start, dtype=torch.float32, device=p.mask.device)
            p.state["velocity"] = torch.zeros_like(p.state["threshold"])

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Everything lives."""
        return {p.name: torch.ones_like(p.mask) for p in params}

    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """``sign(w) * relu(|w| - sigmoid(s))``."""
        assert p.latent is not None
        threshold = p.state["threshold"].sigmoid().to(p.latent.dtype)
        return p.latent.sign() * (p.latent.abs() - threshold).relu_()

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
        logits = {p.name: _logit(_magnitude(p)) for p in params}
        if params[0].free:
            masks = {p.name: logits[p.name] > p.state["threshold"] for p in params}
            return {p.name: masks[p.name] if masks[p.name].any() else p.keep(_magnitude(p), 1, p.mask) for p in params}
        middle = torch.stack([p.state["threshold"] for p in params]).mean()  # at -3200 float32 would lose the order
        scores = {p.name: logits[p.name] - (p.state["threshold"] - middle) for p in params}
        kept = keep_budget(params, scores, ramp(params, _RAMP(step, int(self.stop))))
        for p in params:
            _steer(p.state["threshold"], logits[p.name], kept[p.name])
        return kept

    def training_flops(self, sparse: float, dense: float) -> float:
        """As a ramp that spends a quarter of the way down (the mean of (1 - p)^3); dead weights need no gradient."""
        if not isinstance(self.stop, float):
            return 3 * sparse
        return 3 * (self.stop * (sparse + (dense - sparse) / 4) + (1 - self.stop) * sparse)


def _magnitude(p: SparseParam) -> Tensor:
    assert p.latent is not None
    return p.latent.abs().float()


def _logit(magnitude: Tensor) -> Tensor:
    """Rises with the magnitude, and is its logit below 1."""
    return magnitude.clamp(max=_LARGEST).logit() + (magnitude - 1).relu()


def _steer(s: Tensor, logits: Tensor, kept: Tensor) -> None:
    """Move ``s`` no further than needed: at or above every dropped weight, below the kept ones."""
    low = logits.masked_fill(kept, -torch.inf).amax()
    high = logits.masked_fill(~kept | logits.isneginf(), torch.inf).amin()
    low = torch.where(low.isneginf(), s.clamp(max=high), low)
    high = torch.where(high.isinf(), s.clamp(min=low), high)
    apart = torch.where(s >= high, (low + high) / 2, s.clamp(min=low))
    s.copy_(torch.where(low < high, apart, s.clamp(max=high - 1e-3)))  # a pattern may keep what is smaller
