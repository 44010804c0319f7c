"""Channels out of a model, physically or by zeros."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.channels.atoms import Graph, Kept, kept_indices
from lightning_sparse.channels.attributes import fix
from lightning_sparse.channels.journal import Journal
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import clean
from lightning_sparse.core.surgery import reshape, tensors


def shrink(model: nn.Module, graph: Graph, kept: Kept, optimizers: Iterable[Optimizer] = ()) -> list[str]:
    """Cut the channels that do not stay: parameters, buffers, gradients, optimizer state, attributes of modules.

    All or nothing: on any error the model and the optimizers are as before.

    Args:
        model: that the graph is of.
        graph: from :func:`~lightning_sparse.channels.trace.analyse` or a probe.
        kept: channels that stay, by atom; atoms that are missing stay whole.
        optimizers: that step its parameters.

    Returns:
        A sentence for each optimizer state that could not be cut and was dropped.

    Raises:
        ValueError: if the model has other shapes than the graph, or ``kept`` does not fit it.

    Example:
        >>> from lightning_sparse.channels import analyse
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = analyse(net, lambda: net(torch.zeros(1, 3)))
        >>> shrink(net, graph, {"0": torch.tensor([1, 4, 5])})
        []
        >>> net
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    named = checked(model, graph)
    indices = kept_indices(graph, kept)
    journal, states = Journal(model), _Rows(list(optimizers))
    try:
        dropped = reshape(named, indices, states.optimizers)
        fix(model, indices, graph.shapes)
        modules = {clean(path): module for path, module in model.named_modules(remove_duplicate=False)}
        for path, (name, dim) in graph.widths.items():
            vars(modules[path])["num_features"] = named[name].shape[dim]
    except BaseException:
        journal.undo()
        states.undo()
        raise
    return dropped


@torch.no_grad()
def mask(model: nn.Module, graph: Graph, kept: Kept) -> None:
    """Zero what :func:`shrink` would remove; the shapes stay.

    Weights, biases, gammas and betas that make a channel, the columns that read it, and running means are zero; running
    variances stay, for they divide.

    Args:
        model: that the graph is of.
        graph: as for :func:`shrink`.
        kept: as for :func:`shrink`.

    Raises:
        ValueError: as :func:`shrink`.

    Example:
        >>> from lightning_sparse.channels import analyse
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> mask(net, analyse(net, lambda: net(torch.zeros(1, 3))), {"0": torch.tensor([1, 3])})
        >>> (net[0].weight != 0).any(1).tolist(), (net[2].weight != 0).any(0).tolist()
        ([False, True, False, True], [False, True, False, True])
    """
    named = checked(model, graph)
    for name, dims in removed_indices(graph, kept).items():
        tensor = named[name]
        if tensor.is_floating_point() or tensor.is_complex():
            for dim, index in dims.items():
                if not divides(named, name, dim):
                    tensor.index_fill_(dim, index.to(tensor.device), 0)


def removed_indices(graph: Graph, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """What :func:`shrink` removes, by tensor and dimension: the complement of :func:`kept_indices`."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, dims in kept_indices(graph, kept).items():
        for dim, index in dims.items():
            gone = torch.ones(graph.shapes[name][dim], dtype=torch.bool)
            gone[index] = False
            found.setdefault(name, {})[dim] = gone.nonzero().flatten()
    return found


def divides(named: dict[str, Tensor], name: str, dim: int) -> bool:
    """Whether zeros there would divide zero by zero: variances, and directions that have a length beside them."""
    lengths = {"original1": "original0", "weight_v": "weight_g"}
    head, _, last = name.rpartition(".")
    partner = named.get(f"{head}.{lengths[last]}" if head else lengths[last]) if last in lengths else None
    if partner is not None and partner.ndim == named[name].ndim and partner.shape[dim] > 1:
        return True
    return last == "running_var"


def checked(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """The tensors of the model by name.

    Raises:
        ValueError: if the graph is of another model, or of other shapes.
    """
    named = tensors(model)
    problems = [f"{name} is not in the model" for name in graph.shapes if name not in named]
    problems += [
        f"{name} has the shape {list(named[name].shape)}, and had {list(shape)}: analyse the model anew"
        for name, shape in graph.shapes.items()
        if name in named and tuple(named[name].shape) != tuple(shape)
    ]
    raise_problems(problems, "the graph is not of this model")
    return named


class _Rows:
    """What optimizers keep, to be put back."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        self._saved: list[dict[Any, Any]] = [
            {p: dict(row) if isinstance(row, dict) else row for p, row in o.state.items()} for o in optimizers
        ]

    def undo(self) -> None:
        for optimizer, saved in zip(self.optimizers, self._saved, strict=True):
            optimizer.state.clear()
            optimizer.state.update(saved)
