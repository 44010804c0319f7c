"""Tensors that processes share, as under FSDP2 and tensor parallel: the own part, the whole, and agreement."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_distributed() -> bool:
    """Whether this process belongs to a group of ``torch.distributed``.

    Example:
        >>> is_distributed()
        False
    """
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor; told by what it can do, so that nobody else has to import them."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; a plain tensor is its own.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> local(weight) is weight
        True
    """
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, the same on every process; not to be written to. A plain tensor is whole.

    Processes meet here: all that share the tensor must ask for it.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> full(weight) is weight
        True
    """
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.full_tensor()


def shard_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """What of ``whole``, which every process has, belongs to the entries that this process holds of ``tensor``.

    No process hears of another. Shards may be uneven, or empty.

    Args:
        whole: of the shape of ``tensor``, on its device.
        tensor: plain, or spread in any way over any mesh.

    Example:
        >>> mask = torch.ones(2, 3, dtype=torch.bool)
        >>> shard_like(mask, torch.zeros(2, 3)) is mask
        True
    """
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor import DTensor, Replicate  # deferred: it takes long, and most never need it

    mesh, everywhere = tensor.device_mesh, Replicate()
    places = [everywhere if place.is_partial() else place for place in tensor.placements]
    copies = DTensor.from_local(whole, mesh, [everywhere] * mesh.ndim, run_check=False)
    with torch.no_grad():
        return copies.redistribute(mesh, places).to_local()


def same_places(tensor: Tensor, other: Tensor) -> bool:
    """Whether this process holds the same entries of both.

    Example:
        >>> same_places(torch.zeros(2), torch.ones(2))
        True
    """
    return getattr(tensor, "placements", None) == getattr(other, "placements", None)


def agree(flags: Sequence[bool], tensors: Iterable[Tensor]) -> list[bool]:
    """Each flag, if it is set on every process that shares these tensors; all of these must ask.

    One small exchange for each dimension of a mesh; none where all tensors are plain.

    Example:
        >>> agree([True, False], [torch.zeros(2)])
        [True, False]
    """
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_sharded(tensor))
    votes = torch.tensor(flags, dtype=torch.int32)
    for mesh in meshes:
        votes = votes.to(mesh.device_type)
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN, mesh.get_group(dimension))
    return [bool(vote) for vote in votes.tolist()] if meshes else list(flags)


def reshard(model: nn.Module) -> None:
    """See to it that modules show the shards that optimizers step.

    FSDP2 leaves gathered copies in the outermost module after a forward pass without backward, such as validation:
    what is written to these is lost.
    """
    for module in model.modules():
        if hasattr(type(module), "set_requires_gradient_sync"):  # only FSDP2's modules have it
            module.reshard()  # type: ignore[operator]
