"""A layer that holds its live weights only, as the engine sees it."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class Compact(nn.Module, ABC):
    """A weight by its live entries, which an optimizer steps as one flat Parameter.

    Attributes:
        values: Parameter, one number for each live entry, in the order of the flat dense weight.
        shape: of the dense weight.
        capture: whether the next backward passes also add the dense gradient of the weight to ``dense_grad``.
        dense_grad: the sum of these gradients, or None.
        averaged: whether processes average gradients, so that ``dense_grad`` has to be averaged too.
        bound: whether an engine says what lives: then a dense weight that is loaded does not bring its own places.
    """

    common: ClassVar[bool] = True  # whether layers of its kind are sparse unless the user says otherwise
    values: nn.Parameter
    shape: torch.Size
    capture = False
    averaged = False
    bound = False
    dense_grad: Tensor | None = None

    @property
    @abstractmethod
    def live(self) -> int:
        """How many entries are live."""

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """The live entries as a bool tensor of the dense shape; a new one each time."""

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """The weight in its dense shape; differentiable."""

    @abstractmethod
    def of_values(self, dense: Tensor) -> Tensor:
        """The numbers of a dense tensor at the live places."""

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """A dense tensor with these numbers at the live places, and zeros."""

    @abstractmethod
    def move(self, mask: Tensor) -> Tensor:
        """Take other live entries, in place; for each the index of the former one, -1 where it is new."""


@torch.no_grad()
def followed(state: Tensor, source: Tensor) -> Tensor:
    """What goes with values after a move: of those that stayed, zero for new ones.

    Args:
        state: one number for each former value: a gradient, a momentum.
        source: from :meth:`Compact.move`.

    Example:
        >>> followed(torch.tensor([1.0, 2.0]), torch.tensor([1, -1, 0])).tolist()
        [2.0, 0.0, 1.0]
    """
    if not len(state):
        return state.new_zeros(len(source))
    return torch.where(source < 0, state.new_zeros(()), state[source.clamp_min(0)])
