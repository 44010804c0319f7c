"""The layers of one model that hold live weights only while it trains."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_sparse.compute.replacement import Replacement
from lightning_sparse.compute.states import DenseStates
from lightning_sparse.core.compact import Compact
from lightning_sparse.core.param import SparseParam


class Compaction:
    """Puts layers without zeros into a model, its optimizers, and takes them out again.

    No engine may follow an optimizer meanwhile: ``Sparsifier.detach`` before, ``attach`` after. What the optimizers
    save has the dense shapes all the time.

    Args:
        model: the model.
        averaged: whether processes average gradients.

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

    def __init__(self, model: nn.Module, averaged: bool = False) -> None:
        self.model, self._averaged = model, averaged
        self._held: dict[str, Replacement] = {}
        self._states: list[DenseStates] = []

    @property
    def layers(self) -> dict[str, Compact]:
        """The layers without zeros, by the name of their dense weight."""
        return {name: replacement.layer for name, replacement in self._held.items()}

    def enter(self, params: Sequence[SparseParam], optimizers: Iterable[Optimizer]) -> None:
        """These hold live weights only from now on."""
        found = list(optimizers)
        for p in params:
            self._held[p.name] = Replacement(p, self.model, found, self._averaged)
        self._watch(found)

    def leave(self, optimizers: Iterable[Optimizer], names: Iterable[str] | None = None) -> None:
        """These are dense again, or all."""
        found = list(optimizers)
        for name in list(self._held) if names is None else list(names):
            self._held.pop(name).undo(found)
        self._watch(found)

    def _watch(self, optimizers: Sequence[Optimizer]) -> None:
        for states in self._states:
            states.remove()
        layers = list(self.layers.values())
        self._states = [DenseStates(optimizer, layers) for optimizer in optimizers] if layers else []
