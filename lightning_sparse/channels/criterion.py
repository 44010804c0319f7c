"""What a criterion for channels is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lightning_sparse.channels.parts import Part
from lightning_sparse.core.values import is_whole

Combine = Literal["max", "mean"]
Asks = Literal["nothing", "activations", "gradients", "inputs"]


class Criterion(ABC):
    """Scores the channels of an axis, one tensor at a time; larger is better, and what scores lowest goes first.

    Subclasses are frozen dataclasses with one method, ``score``. What they need is declared, and whoever drives them
    sees to it: ``asks = "activations"`` fills ``part.mean`` and ``part.variance`` of weights that read the channels,
    ``"gradients"`` fills ``part.grad`` with gradients of the loss (scores are averaged over batches), ``"inputs"``
    with gradients of random +-1 projections of the model's output (averaged over projections).

    Attributes:
        asks: what is needed besides the tensors themselves.
        combine: how the scores that the tensors of an axis give a channel become one: "max", so that a channel stays
            that matters anywhere, or "mean".
        comparable: whether scores of different layers mean the same, so that they can compete.
        projections: of the output, for ``asks = "inputs"``.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from lightning_sparse import Criterion, slim
        >>> @dataclass(frozen=True)
        ... class LargestWeight(Criterion):
        ...     def score(self, part: Part) -> Tensor | None:
        ...         return part.rows.abs().flatten(1).amax(1) if part.role == "out" else None
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [-3.0], [2.0]]))
        >>> report = slim(model, torch.ones(2, 1), keep=2 / 3, criterion=LargestWeight())
        >>> model[0].weight.tolist()
        [[-3.0], [2.0]]
    """

    asks: ClassVar[Asks] = "nothing"
    comparable: ClassVar[bool] = True
    combine: Combine = "max"
    projections: int = 1

    @abstractmethod
    def score(self, part: Part) -> Tensor | None:
        """Scores [channels] (or [channels, ...], which ``combine`` reduces); None where the tensor says nothing."""

    def join(self, parts: Sequence[Part], scores: Tensor) -> Tensor:
        """One score a channel.

        Args:
            parts: the tensors that gave scores, at least one.
            scores: theirs, [parts, channels].
        """
        return scores.amax(0) if self.combine == "max" else scores.mean(0)

    def blind(self) -> str:
        """What an axis lacks for which no tensor gave a score."""
        return f"{self!r} sees nothing in it"

    def problems(self) -> list[str]:
        """What is wrong with the options, a sentence each."""
        found = []
        if not isinstance(self.combine, str) or self.combine not in ("max", "mean"):
            found.append(f"combine must be 'max' or 'mean', got {self.combine!r}")
        if not is_whole(self.projections) or self.projections < 1:
            found.append(f"projections must be a positive number, got {self.projections!r}")
        return found
