"""The layers of one model that hold live weights only while it trains."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from lightning_sparse.compute.replacement import Replacement
from lightning_sparse.compute.states import DenseStates
from lightning_sparse.core.compact import Compact
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.select import Target, targets


class _Held(NamedTuple):
    """A parameter, where it was before, and what stands there now, in the model and in its averages."""

    p: SparseParam
    place: Target
    own: Replacement
    others: list[Replacement]


class Compaction:
    """Puts layers without zeros into a model, its optimizers, and takes them out again.

    No engine may follow an optimizer meanwhile: ``Sparsifier.detach`` before, ``attach`` after. What the optimizers
    save has the dense shapes all the time.

    Args:
        model: the model.
        averaged: whether processes average gradients.
        shadows: averages of the model, with the same parameters in the same order; their layers go the same ways.

    Attributes:
        model: the model.

    Example:
        >>> import torch
        >>> from lightning_sparse import RigL, Sparsifier
        >>> model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> engine = Sparsifier(model, RigL(every=2, stop=8), 0.1)
        >>> compaction = Compaction(model)
        >>> compaction.enter(list(engine.params.values()), [optimizer])
        >>> engine.attach(optimizer)
        >>> for _ in range(10):
        ...     loss = model(torch.randn(16, 20)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> engine.updates, list(model.state_dict()), optimizer.state_dict()["state"][0]["exp_avg"].shape
        (4, ['0.weight', '0.bias', '2.weight', '2.bias'], torch.Size([50, 20]))
        >>> engine.detach()
        >>> compaction.leave([optimizer])
        >>> model[0]
        Linear(in_features=20, out_features=50, bias=True)
    """

    def __init__(self, model: nn.Module, averaged: bool = False, shadows: Sequence[nn.Module] = ()) -> None:
        self.model, self._averaged, self._shadows = model, averaged, shadows
        self._held: dict[str, _Held] = {}
        self._states: list[DenseStates] = []

    @property
    def layers(self) -> dict[str, Compact]:
        """The layers without zeros, by the name of their dense weight."""
        return {name: held.own.layer for name, held in self._held.items()}

    def enter(self, params: Sequence[SparseParam], optimizers: Iterable[Optimizer]) -> None:
        """These hold live weights only from now on."""
        found = list(optimizers)
        theirs = [({place.name: place for place, _ in targets(shadow)}, shadow) for shadow in self._shadows]
        for p in params:
            place, mask = p.place, p.mask
            own = Replacement(place, mask, self.model, found)
            p.seat(own.place)
            others = [Replacement(named[p.name], mask, shadow) for named, shadow in theirs if p.name in named]
            own.layer.averaged = self._averaged
            own.layer.twins.extend(other.layer for other in others)
            self._held[p.name] = _Held(p, place, own, others)
        self._watch(found)

    def leave(self, optimizers: Iterable[Optimizer], names: Iterable[str] | None = None) -> None:
        """These are dense again, or all."""
        found = list(optimizers)
        for name in list(self._held) if names is None else list(names):
            p, place, own, others = self._held.pop(name)
            own.undo(found)
            for other in others:
                other.undo()
            p.seat(place)
        self._watch(found)

    def _watch(self, optimizers: Sequence[Optimizer]) -> None:
        for states in self._states:
            states.remove()
        layers = list(self.layers.values())
        self._states = [DenseStates(optimizer, layers) for optimizer in optimizers] if layers else []
