"""An optimizer that steps layers without zeros reads and writes state in the shapes of the dense model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_sparse.core.compact import Compact
from lightning_sparse.core.exchange import carried, carried_flat, stepped

_Carry = Callable[[Tensor], Tensor]


class DenseStates:
    """Hooks on one optimizer's ``state_dict`` and ``load_state_dict``, until ``remove``.

    Args:
        optimizer: that steps them.
        layers: that it may step.
    """

    def __init__(self, optimizer: Optimizer, layers: Sequence[Compact]) -> None:
        self._layers = {id(layer.values): layer for layer in layers}
        self._handles = [
            optimizer.register_state_dict_post_hook(self._spread),
            optimizer.register_load_state_dict_pre_hook(self._gathered),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _spread(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        here = {key: layer.spread for key, layer in self._layers.items()}
        return self._rewritten(optimizer, state, here, dense=False)

    def _gathered(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        here = {key: layer.of_values for key, layer in self._layers.items()}
        return self._rewritten(optimizer, state, here, dense=True)

    def _rewritten(
        self, optimizer: Optimizer, state: dict[str, Any], carry: Mapping[int, _Carry], dense: bool
    ) -> dict[str, Any]:
        weights = stepped(optimizer)
        shapes = [self._layers[id(w)].shape if dense and id(w) in carry else w.shape for w in weights]
        if isinstance(optimizer, LBFGS):
            rows = {i: carried_flat(row, weights, shapes, carry) for i, row in state["state"].items()}
        else:
            rows = {
                i: carried(row, shapes[i], carry[id(weights[i])])
                if isinstance(i, int) and id(weights[i]) in carry
                else row
                for i, row in state["state"].items()
            }
        return {**state, "state": rows}
