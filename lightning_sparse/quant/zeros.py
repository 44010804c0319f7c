"""Zeros of a model that nothing else keeps sparse: they stay zero, whatever the optimizer."""

from collections.abc import Collection, Iterable, Mapping
from glob import escape
from typing import Any

from torch import nn

from lightning_sparse.algorithms import Static
from lightning_sparse.core.select import targets
from lightning_sparse.core.sparsifier import Sparsifier


def partly_zero(model: nn.Module, names: Collection[str], but: Collection[str] = ()) -> dict[str, float]:
    """The live share of the trainable weights among ``names`` that are zero in part, not altogether.

    Args:
        model: any module.
        names: of parameters.
        but: names of those whose zeros something else keeps.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        >>> partly_zero(net, ["weight"])
        {'weight': 0.25}
    """
    chosen = [t for t, _ in targets(model) if t.name in names and t.name not in but and t.weight.requires_grad]
    live = {t.name: int(t.weight.count_nonzero()) / t.weight.numel() for t in chosen}
    return {name: share for name, share in live.items() if 0 < share < 1}


def keep_zeros(
    model: nn.Module,
    densities: Mapping[str, float],
    optimizers: Iterable[Any] = (),
    state: Mapping[str, Any] | None = None,
) -> Sparsifier | None:
    """An engine whose masks are what is not zero now; None where nothing is zero in part.

    Args:
        model: any module.
        densities: from :func:`partly_zero`.
        optimizers: that step the weights.
        state: of such an engine, to go on from.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        >>> keep_zeros(net, partly_zero(net, ["weight"])).masks["weight"].tolist()
        [[True, False], [False, False]]
    """
    if not densities:
        return None
    wanted = {escape(name): share for name, share in densities.items()}
    return Sparsifier(
        model,
        Static(),
        wanted,
        optimizers=optimizers,
        init="magnitude",  # so many are live as are not zero, and these are the largest
        include=list(wanted),
        state=state,
    )
