"""Around forward passes: a sample of the weights for training, their centre for everything else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_sparse.core.param import SparseParam


class Peek:
    """A forward or ``state_dict`` hook that asks for the right weights; a copy of it, in a copied model, does nothing.

    Args:
        show: called with whether a sample is wanted.
        training: what is wanted when the module is in training mode.
    """

    def __init__(self, show: Callable[[bool], None] | None, training: bool) -> None:
        self._show, self._training = show, training

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *args: Any) -> None:
        """Called by torch before the module's forward pass, or before its ``state_dict``."""
        if self._show is not None:
            self._show(self._training and module.training)

    def __deepcopy__(self, memo: Any) -> "Peek":
        """Without the engine: what it would show belongs to another model."""
        return Peek(None, self._training)

    def __reduce__(self) -> Any:
        """Pickles without the engine."""
        return Peek, (None, self._training)


class ForwardHooks:
    """Hooks on every module through which a sparse weight may be used, and on whatever holds these.

    Args:
        model: the model.
        params: the sparse parameters.
        show: called with whether a sample is wanted.
    """

    def __init__(self, model: nn.Module, params: Sequence[SparseParam], show: Callable[[bool], None]) -> None:
        owners = {id(p.place.module) for p in params}
        holders = [m for m in model.modules() if any(id(child) in owners for child in m.modules())]
        self._handles: list[Any] = []
        for module in holders:  # attention uses the weight of a submodule that it never calls
            self._handles.append(module.register_forward_pre_hook(Peek(show, training=True)))
            before_saving = module.register_state_dict_pre_hook(Peek(show, training=False))  # type: ignore[no-untyped-call]
            self._handles.append(before_saving)

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
