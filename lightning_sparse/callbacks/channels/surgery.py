"""Channels out of everything that a Trainer holds: model, optimizers, averages, masks, the wrapper of DDP."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_warn
from lightning_sparse.callbacks.run import averages
from lightning_sparse.channels.atoms import Graph, Kept, kept_indices
from lightning_sparse.channels.attributes import fix
from lightning_sparse.channels.recipe import attributes_of
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.resize import misfits
from lightning_sparse.core.select import modules_of
from lightning_sparse.core.sharded import is_distributed
from lightning_sparse.core.sparsifier import Sparsifier
from lightning_sparse.core.surgery import Cuts, reshape, tensors

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def cut(pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph, kept: Kept) -> None:
    """Cut, for good; optimizers, schedulers and parameters stay the same objects. Call it :func:`unwrapped`.

    Raises:
        ValueError: if the pattern of a sparse layer excludes it; nothing is changed then.
    """
    cuts, engines = kept_indices(graph, kept), masked_by(trainer)
    raise_problems([text for engine in engines for text in misfits(engine.params, cuts)], pruner.name)
    optimizers = [unwrap(optimizer) for optimizer in trainer.optimizers]
    with released(trainer):
        before = attributes_of(pl_module)
        lost = shrink(pl_module, graph, kept, optimizers)
        after = attributes_of(pl_module)
        pruner.recipe.add(graph, kept)
        pruner.recipe.note_attributes(before, after)
        for shadow in averages(trainer):
            _follow(shadow, cuts, before, after)
        for engine in engines:
            engine.resize(cuts, optimizers)
    if lost:
        rank_zero_warn(f"{pruner.name}: {'; '.join(lost)}")


def masked_by(trainer: Any) -> list[Sparsifier]:
    """The engines of all MaskUpdaters, and of what else keeps weights zero."""
    return [engine for each in trainer.callbacks for engine in getattr(each, "engines", ())]


@contextmanager
def released(trainer: Any) -> Iterator[None]:
    """Inside, MaskUpdaters follow no optimizer; what is attached there works before them in each step afterwards."""
    engines = masked_by(trainer)
    for engine in engines:
        engine.detach()
    try:
        yield
    finally:
        for engine in engines:
            for optimizer in trainer.optimizers:
                engine.attach(optimizer)


@contextmanager
def unwrapped(trainer: Any) -> Iterator[None]:
    """Inside, DDP has let go of the model: its reducer loses parameters that get another shape, even for a moment."""
    strategy = trainer.strategy
    if not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    strategy.model = strategy.model.module
    gc.collect()
    try:
        yield
    finally:
        strategy.configure_ddp()


@torch.no_grad()
def agree_on_buffers(trainer: Any, pl_module: nn.Module) -> None:
    """Running statistics are the first rank's on all: those are saved, and DDP takes them for the next forward pass."""
    if trainer.world_size > 1 and is_distributed():
        for buffer in pl_module.buffers():
            torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def _follow(shadow: nn.Module, cuts: Cuts, before: "dict[str, Any]", after: "dict[str, Any]") -> None:
    named = tensors(shadow)
    old = {name: tuple(named[name].shape) for name in cuts if name in named}
    reshape({name: named[name] for name in old}, {name: cuts[name] for name in old})
    fix(shadow, list(old), old)
    modules = modules_of(shadow)
    for name, values in after.items():
        for key, value in values.items():
            if before[name].get(key) != value and name in modules:
                setattr(modules[name], key, value)


def refuse_sharded_optimizers(name: str, trainer: Any) -> None:
    """Stop where an optimizer's state is spread over processes.

    Raises:
        MisconfigurationException: with the way out.
    """
    for optimizer in trainer.optimizers:
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(unwrap(optimizer)).__mro__):
            raise MisconfigurationException(
                f"{name}: ZeroRedundancyOptimizer keeps each state on one process only, which cannot be cut; "
                "take the optimizer that is inside it"
            )
