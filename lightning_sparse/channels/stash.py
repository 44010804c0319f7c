"""Activations that modules keep in plain attributes from one run to the next: hidden states, caches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_sparse.core.select import clean

_DEPTH = 2  # a tuple in a list


@dataclass(frozen=True, eq=False)
class Stashed:
    """A tensor that a run has left in a module.

    Attributes:
        tensor: itself, as the next run will find it.
        labels: of its dimensions, in the run that has left it.
        where: the module and the attribute.
    """

    tensor: Tensor
    labels: Sequence[Tensor | None]
    where: str


def stashed(model: nn.Module, labels: Callable[[Tensor], Sequence[Tensor | None]]) -> list[Stashed]:
    """What a run has left in attributes of modules that has channels, also in lists, tuples and dicts there.

    Parameters and buffers are no such thing. Whether the next run reads it, only that run tells: most of it is
    written anew first.

    Args:
        model: that was run.
        labels: of a tensor of the run, by dimension.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 3)
        >>> net.state = [torch.zeros(1, 3)]
        >>> found = stashed(net, lambda tensor: [None, torch.arange(1, 4)])
        >>> [each.where for each in found]
        ['state of the model']
    """
    found = []
    for path, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        for key, value in own.items():
            for tensor in _tensors(value, _DEPTH):
                known = [] if isinstance(tensor, nn.Parameter) else labels(tensor)
                if any(label is not None for label in known):
                    found.append(Stashed(tensor, known, f"{key} of {clean(path) or 'the model'}"))
    return found


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part, depth - 1)
