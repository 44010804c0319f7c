"""Parameters and buffers get another shape in place, with their gradients and what optimizers keep of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.masks import unpack_bits
from lightning_sparse.core.select import clean

Cuts = Mapping[str, Mapping[int, Tensor]]
_MASK = "mask"  # in the state of lightning_sparse.optim: which weights have state


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, by clean name.

    Example:
        >>> list(tensors(nn.BatchNorm1d(2, affine=False)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return {clean(n): t for n, t in [*model.named_parameters(), *model.named_buffers()]}


def taken(tensor: Tensor, dims: Mapping[int, Tensor], shape: torch.Size) -> Tensor:
    """What is left of a tensor that goes with a weight of ``shape`` when ``dims`` of that are cut to some indices.

    Dimensions that the tensor has not in common with the weight are left alone; its memory format stays.

    Example:
        >>> taken(torch.arange(6).view(2, 3), {1: torch.tensor([0, 2])}, torch.Size([2, 3])).tolist()
        [[0, 2], [3, 5]]
    """
    here = {d: index for d, index in dims.items() if _goes_with(tensor, shape) and tensor.shape[d] == shape[d]}
    result = tensor
    for d, index in here.items():
        result = result.index_select(d, index.to(tensor.device))
    if not here or result.layout != torch.strided:  # the gradient of a sparse embedding
        return result
    return result.contiguous(memory_format=_format(tensor, result))


@torch.no_grad()
def reshape(named: Mapping[str, Tensor], kept: Cuts, optimizers: Iterable[Optimizer] = ()) -> list[str]:
    """Cut tensors to the indices that stay, in place.

    Identity, ``requires_grad``, hooks and memory format stay; gradients and optimizer state are cut alike. State of the
    parameter's number of dimensions, each of the parameter's size or 1 (momentum, moments, factored moments), is cut;
    numbers stay; a parameter with any other state (block-quantised, preconditioners) starts without state, as after
    ``optimizer.zero_state``. LBFGS starts its history anew.

    Args:
        named: parameters and buffers by name.
        kept: int64 indices that stay, by name and dimension.
        optimizers: that step these parameters.

    Returns:
        A sentence for each optimizer state that was dropped.

    Raises:
        ValueError: on names that are not there, or indices that do not fit; nothing is changed then.

    Example:
        >>> weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        >>> reshape({"weight": weight}, {"weight": {1: torch.tensor([0, 2])}})
        []
        >>> weight
        Parameter containing:
        tensor([[0., 2.],
                [3., 5.]], requires_grad=True)
    """
    raise_problems(list(_misfits(named, kept)), "cutting")
    dropped: list[str] = []
    found = list(optimizers)
    for name, cuts in kept.items():
        tensor = named[name]
        here = {d: index.to(tensor.device) for d, index in cuts.items()}
        masks = [(o, _unmask(o, tensor)) for o in found]
        shape = tensor.shape
        gradient, tensor.grad = tensor.grad, None
        content = taken(tensor.detach(), here, shape)
        for optimizer in found:
            dropped += _cut_state(optimizer, tensor, name, shape, here)
        tensor.set_(content)  # type: ignore[call-overload]  # the stubs know storages only
        if gradient is not None:
            tensor.grad = taken(gradient, here, shape)
        for optimizer, mask in masks:
            if mask is not None:
                optimizer.set_mask(tensor, taken(mask.to(tensor.device), here, shape))  # type: ignore[attr-defined]
    changed = {id(named[name]) for name in kept}
    return dropped + [sentence for o in found for sentence in _forget_flat(o, changed)]


@torch.no_grad()
def resize(tensor: Tensor, shape: Sequence[int]) -> None:
    """Give a tensor another shape in place, for content that comes later: it is undefined. Its gradient goes.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> resize(weight, (4, 3))
        >>> weight.shape, weight.requires_grad
        (torch.Size([4, 3]), True)
    """
    tensor.grad = None
    empty = torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)
    tensor.set_(empty.contiguous(memory_format=_format(tensor, empty)))  # type: ignore[call-overload]


def _misfits(named: Mapping[str, Tensor], kept: Cuts) -> Iterator[str]:
    for name, cuts in kept.items():
        if name not in named:
            yield f"no tensor is named {name!r}"
            continue
        shape = named[name].shape
        for d, index in cuts.items():
            if not 0 <= d < len(shape):
                yield f"{name} of shape {list(shape)} has no dimension {d}"
            elif index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= shape[d]:
                yield f"{name} has {shape[d]} elements in dimension {d}, asked to keep {index.tolist()}"


def _format(like: Tensor, value: Tensor) -> torch.memory_format:
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if value.ndim == like.ndim == ndim and like.is_contiguous(memory_format=layout) and not like.is_contiguous():
            return layout
    return torch.contiguous_format


def _cut_state(
    optimizer: Optimizer, tensor: Tensor, name: str, shape: torch.Size, cuts: Mapping[int, Tensor]
) -> list[str]:
    if isinstance(optimizer, LBFGS) or tensor not in optimizer.state:
        return []
    row = optimizer.state[tensor]
    strange = [key for key, value in row.items() if not _is_number(value) and not _is_moment(value, shape)]
    if strange:
        del optimizer.state[tensor]
        return [
            f"{type(optimizer).__name__} starts without state for {name}: {', '.join(map(str, strange))} cannot be cut"
        ]
    for key, value in row.items():
        if not _is_number(value):
            row[key] = taken(value, cuts, shape)
    return []


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, bool | int | float | str)


def _is_moment(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and _goes_with(value, shape)


def _goes_with(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether each of its dimensions is the weight's, or 1."""
    return tensor.ndim == len(shape) and all(n in (1, m) for n, m in zip(tensor.shape, shape, strict=True))


def _unmask(optimizer: Optimizer, tensor: Tensor) -> Tensor | None:
    """The mask that an optimizer with state for live weights only has set; its state is in full afterwards."""
    row = optimizer.state.get(tensor, {})
    if not hasattr(optimizer, "set_mask") or row.get(_MASK) is None:
        return None
    mask = unpack_bits(row[_MASK], tensor.shape)
    optimizer.set_mask(tensor, torch.ones_like(mask))
    return mask


def _forget_flat(optimizer: Optimizer, changed: set[int]) -> list[str]:
    """LBFGS keeps vectors of all parameters together."""
    if not isinstance(optimizer, LBFGS):
        return []
    if not any(id(p) in changed for group in optimizer.param_groups for p in group["params"]):
        return []
    optimizer._numel_cache = None
    if not optimizer.state:
        return []
    optimizer.state.clear()
    return ["LBFGS starts its history anew, for it is of all parameters together"]
