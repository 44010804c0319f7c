"""Channels as numbers for loggers."""

from typing import Any

from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def channel_pruners(trainer: Any) -> list[BNChannelPruner]:
    """Those of a Trainer."""
    return [callback for callback in trainer.callbacks if isinstance(callback, BNChannelPruner)]


def channel_scalars(trainer: Any) -> dict[str, float]:
    """Shares of channels and of forward FLOPs that are left, of what there was before the first cut."""
    values: dict[str, float] = {}
    for pruner in channel_pruners(trainer):
        if pruner.counts:
            values[f"{pruner.name}/channels"] = pruner.history.share()
            values[f"{pruner.name}/flops_share"] = pruner.history.flops_share()
    return values


def channel_details(trainer: Any) -> dict[str, float]:
    """Channels of each axis that are left."""
    pairs = [(pruner.name, pruner.counts) for pruner in channel_pruners(trainer)]
    return {f"{name}/channels/{axis}": float(count) for name, counts in pairs for axis, count in counts.items()}
