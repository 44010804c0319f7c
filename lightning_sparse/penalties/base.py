"""What the engines ask of a penalty."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Penalty(ABC):
    """A price for being large, as pure functions of one tensor.

    Subclasses are frozen dataclasses and define ``value``; the gradient is then autograd's. A formula for the gradient
    is faster, and ``prox`` makes exact zeros. Weights arrive with outputs in dimension 0 and inputs in dimension 1,
    also those of transposed convolutions.

    A gradient must be zero where the weight is zero if it is to leave masked weights alone without a MaskUpdater.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Capped(Penalty):
        ...     cap: float = 1.0
        ...     def value(self, weight: Tensor) -> Tensor:
        ...         return weight.abs().clamp_max(self.cap).sum()
        >>> Capped().gradient(torch.tensor([-0.5, 0.0, 0.5, 2.0])).tolist()
        [-1.0, 0.0, 1.0, 0.0]
    """

    grouped: ClassVar[bool] = False  # whether it reads the shape of weights, and so is none for gammas and activations

    @abstractmethod
    def value(self, weight: Tensor) -> Tensor:
        """The price: a scalar tensor, differentiable."""

    def gradient(self, weight: Tensor) -> Tensor:
        """A (sub)gradient of ``value``, of the weight's shape."""
        gradient: Tensor = torch.func.grad(self.value)(weight)
        return gradient

    def prox(self, weight: Tensor, amount: float | Tensor) -> Tensor:
        """The ``x`` that minimises ``amount * value(x) + ||x - weight||^2 / 2``: a new tensor.

        Raises:
            NotImplementedError: if there is none; ``without_prox`` says why.
        """
        raise NotImplementedError(self.without_prox())

    def without_prox(self) -> str:
        """Why there is no proximal operator; empty when there is one."""
        if type(self).prox is not Penalty.prox:
            return ""
        return f"{self!r} has no proximal operator; leave proximal=False, or take l1, elastic or group_lasso"

    def unfit(self, weight: Tensor, groups: int = 1) -> str:
        """Why such a weight cannot be penalized; empty when it can.

        Args:
            weight: outputs first.
            groups: of its convolution; 1 elsewhere.
        """
        return ""


def wide(weight: Tensor) -> Tensor:
    """The weight in a type that can hold the sum of many: float32 for half precision."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
