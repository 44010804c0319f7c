"""Masks that are chosen once, before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Algorithm, Masks, keep_budget
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.probe import Probe


@dataclass(frozen=True)
class Static(Algorithm):
    """A mask drawn once, random or by magnitude, that never moves: the baseline that every method must beat.

    Example:
        >>> Static().due(100)
        False
    """


@dataclass(frozen=True)
class SNIP(Algorithm):
    """Keep the weights whose removal would change the loss most, before any training.

    The score is ``|w * dL/dw|`` on a few batches, ranked over all layers together (Lee et al. 2019,
    https://arxiv.org/abs/1810.02340, eq. 5 and algorithm 1; ``allocation="erk"`` ranks in each layer). Every layer
    keeps at least one weight. The mask then stays as it is.

    Differences from the authors' code: biases are not ranked, BatchNorm works on the batch (theirs on its start
    values).

    Args:
        batches: how many to look at; gradients are averaged.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> model = torch.nn.Linear(4, 1)
        >>> x = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
        >>> engine = Sparsifier(model, SNIP(), 0.5, batches=[x], loss=lambda model, x: model(x).sum())
        >>> engine.masks["weight"].tolist()
        [[False, True, False, True]]
    """

    allocation: ClassVar[AllocationName] = "global"
    asks: ClassVar[Literal["nothing", "loss", "inputs"]] = "loss"

    batches: int = 1

    def __post_init__(self) -> None:
        """Check what was given."""
        raise_problems(wrong_count("batches", self.batches), "SNIP")

    def init_from(self, params: Sequence[SparseParam], probe: Probe) -> Masks:
        """The weights of largest sensitivity.

        Raises:
            ValueError: if there are no batches, or scores say nothing.
        """
        scores = saliency_of_loss(params, probe, self.batches)
        refuse_empty_scores("SNIP", params, scores)
        return keep_budget(params, scores, [p.target for p in params])


def saliency_of_loss(params: Sequence[SparseParam], probe: Probe, batches: int) -> Masks:
    """``|w * g|`` with the mean gradient ``g`` of the first batches, on all ranks together.

    Raises:
        ValueError: if there are no batches.
    """
    weights = probe.weights([p.name for p in params])
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    taken = 0
    for batch in islice(probe.batches(), batches):
        taken += 1
        for name, gradient in gradients(probe.loss(batch), weights).items():
            total[name] += gradient.detach()
    if not taken:
        raise ValueError("there is no batch to take gradients from: the loader is empty")
    return {name: (weights[name].detach() * g / taken).abs() for name, g in probe.mean(total).items()}


def gradients(loss: Tensor, weights: Masks, graph: bool = False) -> Masks:
    """By name; zero where the loss does not depend on the weight."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, create_graph=graph)
    pairs = zip(weights.items(), found, strict=True)
    return {name: torch.zeros_like(w) if gradient is None else gradient for (name, w), gradient in pairs}


def refuse_empty_scores(name: str, params: Sequence[SparseParam], scores: Masks) -> None:
    """Stop before a mask is made of scores that say nothing: it would keep what comes first in memory.

    Args:
        name: of the algorithm.
        params: the layers.
        scores: by name; the same on all ranks.

    Raises:
        ValueError: with the layers whose scores are NaN or infinite, and those that have to choose among zeros.
    """
    wild = [p.name for p in params if not bool(scores[p.name].isfinite().all())]
    if wild:
        raise ValueError(
            f"{name}: scores are not finite in {some(wild)}: the loss or its gradient is NaN or infinite before any "
            "training; look at the first batches and at the scale of inputs and weights, or train in a wider precision"
        )
    flat = [p.name for p in params if not bool(scores[p.name].any())]
    together = any(p.scope == "global" for p in params)  # then a layer that does not matter goes first, as it should
    choosing = [p.name for p in params if p.name in flat and p.target < p.size]
    if choosing and (len(flat) == len(params) or not together):
        raise ValueError(
            f"{name}: all scores are zero in {some(choosing)}: the result does not depend on these weights, or they or "
            "what follows them start at zero; initialise those layers otherwise, leave layers without use out "
            "(exclude=[...]), or take an algorithm that looks at no data"
        )


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> some(["a", "b", "c", "d", "e", "f", "g"])
        'a, b, c, d, e and 2 more'
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def wrong_count(name: str, value: object) -> list[str]:
    """What is wrong with a number of things; empty when all is well."""
    return [] if type(value) is int and 1 <= value < 2**63 else [f"{name} must be a positive number, got {value!r}"]
