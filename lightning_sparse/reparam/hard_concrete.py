"""Gates that are learned: each weight is multiplied by a random gate that may be exactly zero."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Masks, keep_budget, ramp
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.select import CONVS
from lightning_sparse.reparam.base import RAMP, Ramped

if TYPE_CHECKING:
    from typing_extensions import Self

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1  # temperature and stretch of the paper, section 4
_CLOSED = math.log(-_GAMMA / _ZETA)
_BOUND = math.log(100.0)
_EPS = 1e-6
_NARROW = 0.1  # a weight that is written under a narrower gate is shown smaller


@dataclass(frozen=True)
class L0(Ramped):
    """Multiply weights with hard concrete gates, and pay for every gate that may be open.

    In training a gate is ``z = clamp(s * (zeta - gamma) + gamma, 0, 1)`` with ``s = sigmoid((log u - log(1 - u) +
    log_alpha) / beta)`` and uniform ``u``; otherwise its centre, without ``u`` and ``beta``. The loss pays ``strength``
    a weight times the chance that its gate is open (Louizos et al. 2018, https://arxiv.org/abs/1712.01312, eq. 10 to
    13). What the gates come to decides the density, which is an outcome; with ``density=`` the weights whose gates are
    least open close for good along a cubic ramp (eq. 1 of Zhu & Gupta 2017). After ``stop`` weights are plain, gates
    multiplied in, and masks fixed.

    Until they close for good, gates that happen to be zero belong to the mask: density counts what may be open,
    non-zero density what is. Gates are stepped by Adam. Differences from the authors' code: all layers may be gated by
    weight; one draw serves all the batches of a step; the steering and the plain end are ours; no cost of L2 under the
    gates.

    Args:
        every: optimizer steps between updates of the masks, or "epoch".
        stop: the step after which masks are fixed: optimizer steps (int) or a share of the run (float).
        begin: the last step before a ramp to ``density`` closes gates: optimizer steps (int) or share of the run.
        strength: price of a weight whose gate is open, in units of the loss; the authors' 0.1 / 60,000 for MNIST.
        gates: "weight", one for each, or "unit": one for each input of a linear layer and each output channel of a
            convolution, as the authors do.
        lr: of the gates' Adam, at the first learning rate of the weights; both are scheduled alike.
        drop: share of gates that are closed at first, in (0, 1).

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(8, 4), L0(stop=100, begin=20, gates="unit"), 0.25)
        >>> engine.density(), tuple(engine.params["weight"].state["log_alpha"].shape)
        (1.0, (1, 8))
    """

    noisy: ClassVar[bool] = True

    begin: int | float = 0.25
    strength: float = 0.1 / 60_000
    gates: Literal["weight", "unit"] = "weight"
    lr: float = 1e-3
    drop: float = 0.5

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        found = super().problems()
        if type(self.begin) not in (int, float) or self.begin < 0 or (isinstance(self.begin, float) and self.begin > 1):
            found.append(f"begin must be optimizer steps or a share of the run in [0, 1], got {self.begin!r}")
        elif type(self.begin) is type(self.stop) and self.begin >= self.stop:
            found.append(f"begin must come before stop, got begin={self.begin}, stop={self.stop}")
        if self.gates not in ("weight", "unit"):
            found.append(f"gates must be 'weight' or 'unit', got {self.gates!r}")
        if not self.strength >= 0:
            found.append(f"strength must not be negative, got {self.strength!r}")
        if not self.lr > 0:
            found.append(f"lr must be positive, got {self.lr!r}")
        if not 0 < self.drop < 1:
            found.append(f"drop must be in (0, 1), got {self.drop!r}")
        return found

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        plan = super().planned(total_steps, epoch_steps)
        begin = self.steps("begin", self.begin, total_steps) if self.begin else 0
        return replace(plan, begin=min(begin, int(plan.stop) - 1))

    def due(self, step: int) -> bool:
        """Every so often from ``begin`` on, and at ``stop``."""
        return self.begin < step and super().due(step)

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """Gates around ``drop``, with a standard deviation of 0.01, as the authors draw them."""
        middle = math.log(1 - self.drop) - math.log(self.drop)
        for p in params:
            u = p.uniform("gates", self._shape(p)).clamp_(_EPS, 1 - _EPS)
            p.state["log_alpha"] = torch.special.ndtri(u) * 0.01 + middle
            p.state["mean"], p.state["square"] = torch.zeros_like(u), torch.zeros_like(u)
            p.state["steps"] = torch.zeros((), device=u.device)

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The gates, and what Adam remembers of them."""
        return {**dict.fromkeys(("log_alpha", "mean", "square"), tuple(self._shape(p))), "steps": ()}

    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """The latent weights times their gates; a noisy pass draws these."""
        assert p.latent is not None
        z, slope = self._gates(p, noisy)
        if noisy:
            p.scratch["z"], p.scratch["slope"] = z, slope
        return p.latent * z.to(p.latent.dtype)

    def latent_of(self, p: SparseParam, changed: Tensor) -> Tensor:
        """What is shown, divided by its gate; at most tenfold, or a gate that opens later would show far too much."""
        assert p.latent is not None
        z, _ = self._gates(p, p.noisy)
        return torch.where(changed, p.weight / z.clamp_(min=_NARROW).to(p.latent.dtype), p.latent)

    def _gates(self, p: SparseParam, noisy: bool) -> tuple[Tensor, Tensor]:
        """The gates, and how they move with ``log_alpha``."""
        log_alpha = p.state["log_alpha"]
        if noisy:
            u = p.uniform("gate", log_alpha.shape).clamp_(_EPS, 1 - _EPS)
            s = ((u.log() - (-u).log1p() + log_alpha) / _BETA).sigmoid_()
        else:
            s = log_alpha.sigmoid()
        z = s * (_ZETA - _GAMMA) + _GAMMA
        slope = (_ZETA - _GAMMA) * s * (1 - s) * ((z > 0) & (z < 1))
        return z.clamp_(0, 1), slope / _BETA if noisy else slope

    def pull_back(self, p: SparseParam, gradient: Tensor) -> Tensor:
        """Of the product: each factor's gradient is the other's value; a gate's goes on to its ``log_alpha``."""
        assert p.latent is not None
        if "z" not in p.scratch:  # no pass has drawn gates: the centre was used
            p.scratch["z"], p.scratch["slope"] = self._gates(p, noisy=False)
        masked = gradient * p.mask
        gates = (masked * p.latent).float().sum_to_size(p.state["log_alpha"].shape)
        p.scratch["gates"] = gates * p.scratch["slope"]
        return masked * p.scratch["z"].to(masked.dtype)

    def learn(self, p: SparseParam, group: Mapping[str, Any], scale: Tensor | None) -> None:
        """A step of Adam on the loss and the price of open gates."""
        log_alpha, mean, square = p.state["log_alpha"], p.state["mean"], p.state["square"]
        gradient = p.scratch.get("gates", torch.zeros_like(log_alpha))
        gradient = (gradient if scale is None else gradient / scale).nan_to_num(0.0, 0.0, 0.0)
        opened = (log_alpha - _BETA * _CLOSED).sigmoid()
        weights = log_alpha.numel() / p.size
        gradient = gradient + self.strength / weights * opened * (1 - opened)
        p.state["steps"].add_(1)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        m, v = mean / (1 - 0.9 ** p.state["steps"]), square / (1 - 0.999 ** p.state["steps"])
        rate = self.lr * (group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0)
        log_alpha.sub_(rate * m / (v.sqrt() + 1e-8)).clamp_(-_BOUND, _BOUND)

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Close the least open gates for good; without a density, those that are closed at ``stop``."""
        spread = {p.name: p.state["log_alpha"].expand_as(p.mask) for p in params}
        if not params[0].free:
            way = int(self.stop) - int(self.begin)
            counts = ramp(params, RAMP(step - int(self.begin), way))
            if sum(counts) >= sum(p.live for p in params):
                return {}  # a later run begins below where its ramp does
            return keep_budget(params, spread, counts, live_only=True)
        if step != self.stop:
            return {}
        open_now = {p.name: spread[p.name] > _CLOSED for p in params}
        one = {p.name: p.keep(spread[p.name], 1, p.mask) for p in params}  # no layer may die
        return {name: mask if mask.any() else one[name] for name, mask in open_now.items()}

    def training_flops(self, sparse: float, dense: float) -> float:
        """Dense until ``begin``, then a ramp that spends a quarter of the way down; gates that are zero count."""
        if not isinstance(self.stop, float) or not isinstance(self.begin, float):
            return 3 * sparse
        way = self.stop - self.begin
        return 3 * (self.begin * dense + way * (sparse + (dense - sparse) / 4) + (1 - self.stop) * sparse)

    def _shape(self, p: SparseParam) -> torch.Size:
        """Of the gates: one for each weight, or one for each unit, to be spread over its weights."""
        shape = p.mask.shape
        if self.gates == "weight":
            return shape
        axis = 0 if isinstance(p.place.module, CONVS) else 1  # transposed convolutions have their outputs second
        return torch.Size([n if i == axis else 1 for i, n in enumerate(shape)])
