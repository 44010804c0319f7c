"""A copy of a module that exporters can read: without wrappers, in evaluation mode, float32 on the CPU."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.probe import own_steps, untouched_randomness
from lightning_sparse.core.sharded import is_sharded

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INSIDE = ("_orig_mod", "_forward_module")  # torch.compile, Fabric


def unwrapped(module: nn.Module) -> nn.Module:
    """The module without what was put around it to train it.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    while True:
        inner = module.module if isinstance(module, _PARALLEL) else None
        for name in _INSIDE:
            inner = module._modules.get(name, inner)
        if inner is None:
            return module
        module = inner


def plain_copy(module: nn.Module, where: str) -> nn.Module:
    """A copy that shares nothing with the module.

    Raises:
        ValueError: if it cannot be copied, or its weights are not all here.
    """
    module = unwrapped(module)
    problems = [f"{name} is sharded over processes; gather it first" for name, p in _weights(module) if is_sharded(p)]
    problems += [f"{name} has no values yet; materialise the model first" for name, p in _weights(module) if _empty(p)]
    raise_problems(problems, where)
    with untouched_randomness():
        try:
            twin = copy.deepcopy(module)
        except Exception as error:
            raise ValueError(f"{where}: the module cannot be copied: {error}") from error
    for part in list(twin.modules()):
        part._compiled_call_impl = None
        own_steps(part)
        for name, child in list(part._modules.items()):
            if child is not None:
                part._modules[name] = unwrapped(child)
    twin.eval().requires_grad_(False)
    twin.zero_grad()
    for part in twin.modules():
        _take_slow_path(part)
    return twin.float().cpu()


def float_inputs(inputs: Any) -> Any:
    """Copies of the inputs on the CPU, floats as float32.

    Example:
        >>> import torch
        >>> float_inputs((torch.ones(1, dtype=torch.float64), 3))
        (tensor([1.]), 3)
    """

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        twin = leaf.detach().clone().cpu()
        return twin.float() if twin.is_floating_point() else twin

    return tree_map(moved, inputs)


def replaced(module: nn.Module, new: dict[int, nn.Module]) -> nn.Module:
    """The module with others in the places of some, wherever these stand; by ``id``."""
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):
            if child is not None and id(child) in new:
                part._modules[name] = new[id(child)]
    return new.get(id(module), module)


def _weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _empty(weight: Tensor) -> bool:
    lazy = isinstance(weight, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)
    return lazy or weight.is_meta


def _take_slow_path(module: nn.Module) -> None:
    """The fused kernel of transformer layers would go by its parts, which may be quantized."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
