"""How much a channel matters: the criteria that can be had by name."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_sparse.channels.criterion import Asks, Combine, Criterion
from lightning_sparse.channels.gates import Sensitivity, Taylor
from lightning_sparse.channels.parts import Part
from lightning_sparse.core.values import is_whole


@dataclass(frozen=True)
class Gamma(Criterion):
    """The scale of BatchNorm, |gamma|, as it is: network slimming.

    Raw, with no normaliser, so that layers compete as in the paper under ``scope="global"``; gammas must have been
    trained with an L1 penalty, and are comparable where BatchNorm comes before the activation (Liu et al. 2017,
    https://arxiv.org/abs/1708.06519).

    Args:
        combine: over the BatchNorms of an axis.

    Example:
        >>> Gamma().combine
        'max'
    """

    combine: Combine = "max"

    def score(self, part: Part) -> Tensor | None:
        """Of BatchNorm's weight."""
        return part.rows.abs() if _is_batchnorm(part, "weight") else None

    def blind(self) -> str:
        return "no BatchNorm with weights (affine=True) scales its channels"


@dataclass(frozen=True)
class BNVariance(Criterion):
    """BatchNorm's ``running_var``, literally: the variance of what the layer before puts out.

    It is not scale-invariant: a convolution with weights c times as large has c² times the variance and, behind its
    BatchNorm, the same function. So layers should not compete by it (``scope="layer"``), and :class:`BNStd` is the
    better measure. No paper ranks by it; it is here because people ask for it.

    Args:
        combine: over the BatchNorms of an axis.

    Example:
        >>> BNVariance().asks
        'nothing'
    """

    comparable: ClassVar[bool] = False

    combine: Combine = "max"

    def score(self, part: Part) -> Tensor | None:
        """Of BatchNorm's running variance."""
        return part.rows if _is_batchnorm(part, "running_var") else None

    def blind(self) -> str:
        return "no BatchNorm with running statistics keeps the variance of its channels"


@dataclass(frozen=True)
class BNStd(Criterion):
    """The standard deviation of what BatchNorm puts out in evaluation: ``|gamma| * sqrt(var / (var + eps))``.

    The recommended one of the three. It is |gamma| where the input is alive, does not change with the scale of the
    weights before, and goes to zero where the input is dead (``var`` far below ``eps``), which |gamma| does not see: a
    channel that nothing feeds keeps its gamma, and removing it costs nothing.

    Args:
        combine: over the BatchNorms of an axis.

    Example:
        >>> BNStd("mean").combine
        'mean'
    """

    combine: Combine = "max"

    def score(self, part: Part) -> Tensor | None:
        """Of BatchNorm's running variance and weight (1 without weights)."""
        if not _is_batchnorm(part, "running_var"):
            return None
        gamma, eps = part.beside("weight"), part.module.eps
        std: Tensor = (part.rows / (part.rows + eps)).sqrt()  # type: ignore[operator]
        return std if gamma is None else gamma.abs() * std

    def blind(self) -> str:
        return "no BatchNorm with running statistics follows"


@dataclass(frozen=True)
class WeightNorm(Criterion):
    """The norm of the weights that produce a channel: a filter of a convolution, a row of a Linear.

    L1 is that of Li et al. 2017, https://arxiv.org/abs/1608.08710: the sum of absolute weights, biases left out. Sums
    grow with the size of a filter, so layers should not compete by it (``scope="layer"``).

    Args:
        p: 1 or 2.
        combine: over the layers that produce an axis, such as all those that write a residual stream.

    Example:
        >>> WeightNorm(2).p
        2
    """

    comparable: ClassVar[bool] = False

    p: int = 1
    combine: Combine = "max"

    def score(self, part: Part) -> Tensor | None:
        """Of weights that produce."""
        if part.role != "out":
            return None
        rows = part.rows.flatten(1)
        return rows.abs().sum(1) if self.p == 1 else rows.square().sum(1).sqrt()

    def blind(self) -> str:
        return "no weight of a layer produces it"

    def problems(self) -> list[str]:
        wrong = not is_whole(self.p) or self.p not in (1, 2)
        return super().problems() + ([f"p must be 1 or 2, got {self.p!r}"] if wrong else [])


@dataclass(frozen=True)
class Activation(Criterion):
    """How much a channel varies after the activation: the variance of what its readers get, over samples and places.

    A channel that hardly varies can be replaced by its mean, which ``compensate`` folds into the next bias
    (Berisha et al. 2025, https://arxiv.org/abs/2507.12988: hidden layers of MLPs; here any layer that a Linear or a
    convolution reads). It changes with the scale of the weights.

    Args:
        combine: over all that reads an axis, and over the entries of a channel that is flattened.

    Example:
        >>> Activation().asks
        'activations'
    """

    comparable: ClassVar[bool] = False
    asks: ClassVar[Asks] = "activations"
    combine: Combine = "max"

    def score(self, part: Part) -> Tensor | None:
        """Of what arrives at a weight that reads."""
        return part.variance

    def blind(self) -> str:
        return "no Linear or convolution that reads its channels was called"


@dataclass(frozen=True)
class Random(Criterion):
    """Chance: the baseline. Numbers in [0, 1), a function of the seed and the axis' name alone.

    Args:
        seed: any whole number.

    Example:
        >>> Random(seed=3).seed
        3
    """

    seed: int = 0

    def score(self, part: Part) -> Tensor | None:
        """The same for every tensor of an axis."""
        text = f"{self.seed}/{part.atom}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
        return torch.rand(len(part.rows), generator=torch.Generator().manual_seed(seed)).to(part.rows.device)

    def problems(self) -> list[str]:
        return super().problems() + ([] if is_whole(self.seed) else [f"seed must be a whole number, got {self.seed!r}"])


CRITERIA: Mapping[str, Criterion] = {
    "gamma": Gamma(),
    "bn_var": BNVariance(),
    "bn_std": BNStd(),
    "l1": WeightNorm(1),
    "l2": WeightNorm(2),
    "activation": Activation(),
    "taylor": Taylor(),
    "sensitivity": Sensitivity(),
    "random": Random(),
}


def criterion_problems(criterion: object) -> list[str]:
    """What is wrong with a criterion, or with the name of one.

    Example:
        >>> criterion_problems("fisher")[0][:60]
        "unknown criterion 'fisher'; there are gamma, bn_var, bn_std,"
    """
    if isinstance(criterion, Criterion):
        return [f"{type(criterion).__name__}: {text}" for text in criterion.problems()]
    if isinstance(criterion, str) and criterion in CRITERIA:
        return []
    return [f"unknown criterion {criterion!r}; there are {', '.join(CRITERIA)}, or give an object such as Gamma()"]


def named(criterion: "str | Criterion") -> Criterion:
    """The criterion of that name, or the one that was given."""
    return CRITERIA[criterion] if isinstance(criterion, str) else criterion


def _is_batchnorm(part: Part, attribute: str) -> bool:
    return isinstance(part.module, nn.modules.batchnorm._BatchNorm) and part.attribute == attribute
