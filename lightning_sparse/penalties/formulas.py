"""The penalties: each one value, one gradient and, where there is one, one proximal operator."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.penalties.base import Penalty, wide

Groups = Literal["neurons", "inputs", "kernels", "channels"]


@dataclass(frozen=True)
class L1(Penalty):
    """The sum of magnitudes: every weight is pulled to zero with the same force.

    The subgradient is ``sign(w)`` with ``sign(0) = 0`` (as in network slimming, Liu et al. 2017,
    https://arxiv.org/abs/1708.06519); the proximal operator is soft thresholding (Beck & Teboulle 2009,
    https://doi.org/10.1137/080716542).

    Example:
        >>> weight = torch.tensor([1.0, -0.25, 0.0])
        >>> float(L1().value(weight)), L1().gradient(weight).tolist(), L1().prox(weight, 0.5).tolist()
        (1.25, [1.0, -1.0, 0.0], [0.5, 0.0, 0.0])
    """

    def value(self, weight: Tensor) -> Tensor:
        """``sum |w|``."""
        return wide(weight).abs().sum()

    def gradient(self, weight: Tensor) -> Tensor:
        """``sign(w)``."""
        return weight.sign()

    def prox(self, weight: Tensor, amount: float | Tensor) -> Tensor:
        """``sign(w) * max(|w| - amount, 0)``."""
        return _soft(weight, amount)


@dataclass(frozen=True)
class L2(Penalty):
    """Half the sum of squares. Its gradient is ``w``: a strength is what torch calls ``weight_decay``.

    It shrinks weights and makes none of them zero, so it has no proximal form here.

    Example:
        >>> weight = torch.tensor([3.0, -1.0])
        >>> float(L2().value(weight)), L2().gradient(weight).tolist()
        (5.0, [3.0, -1.0])
    """

    def value(self, weight: Tensor) -> Tensor:
        """``sum w^2 / 2``."""
        return wide(weight).square().sum() / 2

    def gradient(self, weight: Tensor) -> Tensor:
        """``w``."""
        return weight.clone()


@dataclass(frozen=True)
class Elastic(Penalty):
    """L1 and L2 together (Zou & Hastie 2005, https://doi.org/10.1111/j.1467-9868.2005.00503.x).

    In the form that ``glmnet`` uses, ``mix * sum |w| + (1 - mix) * sum w^2 / 2``; the paper has a strength for each and
    no half.

    Args:
        mix: share of L1, in [0, 1].

    Example:
        >>> weight = torch.tensor([2.0, -0.2])
        >>> Elastic(0.5).gradient(weight).tolist(), Elastic(0.5).prox(weight, 1.0).tolist()
        ([1.5, -0.6...], [1.0, 0.0])
    """

    mix: float = 0.5

    def __post_init__(self) -> None:
        """Check the share."""
        fine = isinstance(self.mix, int | float) and not isinstance(self.mix, bool) and 0 <= self.mix <= 1
        raise_problems([] if fine else [f"mix must be in [0, 1], got {self.mix!r}"], "Elastic")

    def value(self, weight: Tensor) -> Tensor:
        """``mix * sum |w| + (1 - mix) * sum w^2 / 2``."""
        return self.mix * L1().value(weight) + (1 - self.mix) * L2().value(weight)

    def gradient(self, weight: Tensor) -> Tensor:
        """``mix * sign(w) + (1 - mix) * w``."""
        return self.mix * weight.sign() + (1 - self.mix) * weight

    def prox(self, weight: Tensor, amount: float | Tensor) -> Tensor:
        """The soft threshold at ``amount * mix``, divided by ``1 + amount * (1 - mix)``."""
        return _soft(weight, amount * self.mix) / (1 + amount * (1 - self.mix))


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """The sum of the norms of groups: whole groups become zero (Yuan & Lin 2006, section 2).

    Source: https://doi.org/10.1111/j.1467-9868.2005.00532.x; on channels as in Wen et al. 2016,
    https://arxiv.org/abs/1608.03665, and PruneTrain (Lym et al. 2019, https://arxiv.org/abs/1901.09290). Where we
    differ from PruneTrain: each norm counts with the square root of its group's size, as Yuan & Lin have it
    (``by_size=False`` leaves that out), the gradient of a group of zeros is zero instead of smoothed by 1e-8, and the
    inputs of the first and the outputs of the last layer count too unless ``exclude`` names those layers.

    Args:
        groups: "neurons" (all weights of an output: rows, filters), "inputs" (all weights that read an input: columns,
            input channels), "kernels" (each k x k slice of a convolution), or "channels" (inputs and outputs both;
            they overlap, so there is no proximal form). Of grouped convolutions only "neurons" and "kernels".
        by_size: whether a norm counts with the square root of the group's size.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> float(GroupLasso("neurons", by_size=False).value(weight))
        5.5
        >>> GroupLasso("neurons", by_size=False).prox(weight, 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """

    grouped: ClassVar[bool] = True

    groups: Groups = "neurons"
    by_size: bool = True

    def __post_init__(self) -> None:
        """Check the name."""
        known = ("neurons", "inputs", "kernels", "channels")
        wrong = f"unknown groups {self.groups!r}; there are {', '.join(known)}"
        raise_problems([] if self.groups in known else [wrong], "GroupLasso")

    def value(self, weight: Tensor) -> Tensor:
        """``sum_g sqrt(size_g) * ||w_g||``."""
        parts = [self._factor(weight, dims) * _norms(weight, dims).sum() for dims in self._dims(weight)]
        return torch.stack(parts).sum()

    def gradient(self, weight: Tensor) -> Tensor:
        """``sqrt(size_g) * w_g / ||w_g||``, zero for a group of zeros."""
        total = torch.zeros_like(weight)
        for dims in self._dims(weight):
            norms = _norms(weight, dims)
            total += weight * torch.where(norms > 0, self._factor(weight, dims) / norms, 0.0)
        return total

    def prox(self, weight: Tensor, amount: float | Tensor) -> Tensor:
        """``w_g * max(1 - amount * sqrt(size_g) / ||w_g||, 0)``."""
        if problem := self.without_prox():
            raise NotImplementedError(problem)
        (dims,) = self._dims(weight)
        norms = _norms(weight, dims)
        left = norms - amount * self._factor(weight, dims)
        return torch.where(left <= 0, 0.0, weight * (left / norms)).to(weight.dtype)

    def without_prox(self) -> str:
        """See :meth:`Penalty.without_prox`."""
        if self.groups != "channels":
            return ""
        return f"{self!r} has no proximal operator: its groups overlap; take groups='neurons' or groups='inputs'"

    def unfit(self, weight: Tensor, groups: int = 1) -> str:
        """See :meth:`Penalty.unfit`."""
        least = 3 if self.groups == "kernels" else 2
        if weight.ndim < least:
            return f"groups={self.groups!r} need {least} dimensions, it has {weight.ndim}"
        if groups > 1 and self.groups in ("inputs", "channels"):
            return f"groups={self.groups!r} are mixed in a convolution of {groups} groups"
        return ""

    def _dims(self, weight: Tensor) -> list[tuple[int, ...]]:
        """The dimensions to sum over; two sets of groups for channels."""
        if problem := self.unfit(weight):
            raise ValueError(f"{self!r}: {problem}")
        rest = tuple(range(2, weight.ndim))
        rows, columns = (1, *rest), (0, *rest)
        return {"neurons": [rows], "inputs": [columns], "kernels": [rest], "channels": [rows, columns]}[self.groups]

    def _factor(self, weight: Tensor, dims: tuple[int, ...]) -> float:
        size = 1
        for dim in dims:
            size *= weight.shape[dim]
        return float(size**0.5) if self.by_size else 1.0


@dataclass(frozen=True)
class Hoyer(Penalty):
    """The Hoyer-Square of a layer: between 1 (one weight) and the number of weights (all equal), at any scale.

    It asks for few weights rather than small ones: weights above ``sum w^2 / sum |w|`` grow, those below shrink.
    Source: Yang et al. 2020 (DeepHoyer), https://arxiv.org/abs/1908.09979. Where we differ: a layer of zeros costs 0
    and has gradient 0 instead of NaN.

    Example:
        >>> float(Hoyer().value(torch.tensor([2.0, 0.0, 0.0]))), float(Hoyer().value(torch.tensor([2.0, 2.0, -2.0])))
        (1.0, 3.0)
    """

    def value(self, weight: Tensor) -> Tensor:
        """``(sum |w|)^2 / sum w^2``."""
        first, second = _sums(weight)
        return first.square() / second

    def gradient(self, weight: Tensor) -> Tensor:
        """``2 sign(w) * (sum |w| / (sum w^2)^2) * (sum w^2 - |w| sum |w|)``."""
        first, second = _sums(weight)
        return 2 * (first / second) * (weight.sign() - weight * (first / second))


PENALTIES: dict[str, Penalty] = {
    "l1": L1(),
    "l2": L2(),
    "elastic": Elastic(),
    "group_lasso": GroupLasso(),
    "hoyer": Hoyer(),
}


def _soft(weight: Tensor, amount: float | Tensor) -> Tensor:
    # what is taken away is the weight itself inside the threshold: an exact zero, and never -0
    limit = torch.as_tensor(amount, device=weight.device, dtype=weight.dtype)
    taken: Tensor = torch.minimum(torch.maximum(weight, -limit), limit)
    return weight - taken


def _norms(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(wide(weight), dim=dims, keepdim=True)
    return norms


def _sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of magnitudes and of squares; of zeros they are 0 and 1."""
    first, second = wide(weight).abs().sum(), wide(weight).square().sum()
    return first, torch.where(second > 0, second, 1.0)
