"""A layer without zeros in the place of one with zeros, and the way back."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.support import FORMS
from lightning_sparse.core.exchange import Exchange, exchange
from lightning_sparse.core.select import Target

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


class Replacement:
    """While it stands, the model computes with live weights only; afterwards module and Parameter are those of before.

    The dense Parameter keeps its identity and no memory; hooks work on either module.

    Args:
        place: of a weight that has a form without zeros.
        mask: of the weight.
        model: that it is of.
        optimizers: that may step it.

    Attributes:
        layer: the layer without zeros.
        place: of its values.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> linear, weight = model[0], model[0].weight
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> place = Target("0.weight", linear, "weight")
        >>> replacement = Replacement(place, torch.eye(8).bool(), model, [optimizer])
        >>> model[0], weight.numel(), optimizer.param_groups[0]["params"][0] is model[0].values
        (SparseLinear(in_features=8, out_features=8, bias=True, live=8), 0, True)
        >>> replacement.undo([optimizer])
        >>> model[0] is linear, linear.weight is weight, int(weight.count_nonzero())
        (True, True, 8)
    """

    @torch.no_grad()
    def __init__(self, place: Target, mask: Tensor, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        module = place.module
        self._model, self._module = model, module
        self._weight: nn.Parameter = module._parameters["weight"]  # type: ignore[assignment]  # there is one
        self._format = _format(self._weight)
        self.layer: SparseLayer = FORMS[type(module)].from_dense(module, mask).bind()  # type: ignore[attr-defined]
        self.place = Target(place.name, self.layer, "values")
        self._plain = set(vars(self.layer))
        _dress(self.layer, module)
        if self._weight.grad is not None:
            self.layer.values.grad, self._weight.grad = self.layer.of_values(self._weight.grad), None
        for optimizer in optimizers:
            exchange(optimizer, Exchange(self._weight, self.layer.values, self.layer.of_values))
        _put(model, module, self.layer)
        self._weight.set_(torch.empty(0, dtype=self._weight.dtype))  # type: ignore[call-overload]  # as in surgery

    @torch.no_grad()
    def undo(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """The dense module is back, with zeros."""
        layer, module, weight = self.layer, self._module, self._weight
        content = layer.dense_weight().to(weight.dtype).contiguous(memory_format=self._format)
        weight.set_(content.to(weight.device))  # type: ignore[call-overload]
        weight.requires_grad_(layer.values.requires_grad)
        weight.grad = None if layer.values.grad is None else layer.spread(layer.values.grad)
        if "bias" in module._parameters:
            module._parameters["bias"] = layer._parameters.get("bias")
        for optimizer in optimizers:
            exchange(optimizer, Exchange(layer.values, weight, layer.spread))
        module.train(layer.training)
        for name in {*_HOOKS, *vars(layer)} - self._plain | {"_is_full_backward_hook"}:
            setattr(module, name, getattr(layer, name))  # what was noted on the layer meanwhile
        _put(self._model, layer, module)


def _dress(layer: SparseLayer, module: nn.Module) -> None:
    """Hooks are shared, so that they can be taken off either module; what a user has noted on the module is copied."""
    for name in _HOOKS:
        setattr(layer, name, getattr(module, name))
    own = vars(layer)
    for name, value in vars(module).items():
        if name not in own and not hasattr(type(layer), name):
            setattr(layer, name, value)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Wherever the model holds a module, it holds the other one."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _format(weight: torch.Tensor) -> torch.memory_format:
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
