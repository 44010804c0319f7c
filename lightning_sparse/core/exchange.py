"""An optimizer steps another parameter in the place of one, and keeps what it knows of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer


class Exchange(NamedTuple):
    """One parameter for another.

    Attributes:
        old: leaves.
        new: comes.
        carry: makes what goes with the new one of what went with the old one, entry by entry: a gradient, a momentum.
    """

    old: Tensor
    new: Tensor
    carry: Callable[[Tensor], Tensor]


@torch.no_grad()
def exchange(optimizer: Optimizer, swap: Exchange) -> None:
    """Put the new parameter where the old one is, in the groups and in the state; no other is touched.

    Example:
        >>> old, new = torch.zeros(2, 2), torch.zeros(3)
        >>> optimizer = torch.optim.SGD([old], lr=0.1, momentum=0.9)
        >>> optimizer.state[old] = {"momentum_buffer": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> exchange(optimizer, Exchange(old, new, lambda dense: dense.flatten()[:3]))
        >>> optimizer.param_groups[0]["params"][0] is new, optimizer.state[new]["momentum_buffer"].tolist()
        (True, [1.0, 2.0, 3.0])
    """
    weights = stepped(optimizer)
    if not any(weight is swap.old for weight in weights):
        return
    if isinstance(optimizer, LBFGS):
        for row in optimizer.state.values():
            row.update(carried_flat(row, weights, [w.shape for w in weights], {id(swap.old): swap.carry}))
        optimizer._numel_cache = None
    for group in optimizer.param_groups:
        group["params"][:] = [swap.new if weight is swap.old else weight for weight in group["params"]]  # LBFGS has it
    if swap.old in optimizer.state:
        row = optimizer.state.pop(swap.old)
        optimizer.state[swap.new] = row if isinstance(optimizer, LBFGS) else carried(row, swap.old.shape, swap.carry)


def stepped(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups, in their order."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def carried(row: Mapping[str, Any], shape: torch.Size, carry: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """State of one parameter, with what has an entry for each of its numbers carried over."""
    return {key: carry(v) if isinstance(v, Tensor) and v.shape == shape else v for key, v in row.items()}


def carried_flat(
    row: Mapping[str, Any],
    weights: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    carry: Mapping[int, Callable[[Tensor], Tensor]],
) -> dict[str, Any]:
    """LBFGS' state, whose vectors go over all parameters, with the parts of some carried over.

    Args:
        row: the state.
        weights: of the optimizer.
        shapes: what these had when the state was made.
        carry: by the identity of a weight.
    """
    sizes = [shape.numel() for shape in shapes]

    def vector(flat: Any) -> Any:
        if not isinstance(flat, Tensor) or flat.shape != (sum(sizes),):
            return flat
        parts = zip(torch.split(flat, sizes), shapes, weights, strict=True)
        return torch.cat([carry[id(w)](part.view(s)).flatten() if id(w) in carry else part for part, s, w in parts])

    return {key: [vector(v) for v in value] if isinstance(value, list) else vector(value) for key, value in row.items()}
