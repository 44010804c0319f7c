"""One moment at which channels go."""

from typing import TYPE_CHECKING, Any

import torch

from lightning_sparse.callbacks.base import rank_zero_info
from lightning_sparse.callbacks.channels.decision import decided
from lightning_sparse.callbacks.channels.history import Cut
from lightning_sparse.callbacks.channels.start import hold
from lightning_sparse.callbacks.channels.surgery import agree_on_buffers, cut, released
from lightning_sparse.callbacks.channels.trace import quiet, quiet_step, samples
from lightning_sparse.callbacks.run import averages
from lightning_sparse.channels.atoms import Graph, Kept
from lightning_sparse.channels.compensate import Calibration
from lightning_sparse.channels.recipe import Recipe
from lightning_sparse.channels.report import make_report
from lightning_sparse.channels.shrink import mask
from lightning_sparse.core.probe import eval_mode, untouched_randomness
from lightning_sparse.core.surgery import tensors

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def go(pruner: "BNChannelPruner", trainer: Any, pl_module: Any, reached: int, now: tuple[int, int]) -> bool:
    """Decide which channels stay after the moments reached, and let the others go; whether that could be done.

    Args:
        pruner: whose moments they are.
        trainer: in the fit.
        pl_module: its model.
        reached: how many moments have come.
        now: epochs that have ended, and steps.
    """
    agree_on_buffers(trainer, pl_module)
    graph = pruner.watch.between_steps(pruner, trainer, pl_module)
    if graph is None:
        return False
    kept, unseen = decided(pruner, trainer, pl_module, graph, reached)
    pruner.done = reached
    if all(len(index) == pruner.counts[name] for name, index in kept.items()):
        rank_zero_info(f"{pruner.name}: no channel leaves")
        return True
    if pruner.compensate:
        _compensate(pruner, trainer, pl_module, graph, kept)
    _note(pruner, trainer, pl_module, graph, kept, unseen, now)
    if pruner.shrink == "live":
        cut(pruner, trainer, pl_module, graph, kept)
        pruner.watch.forget()
    else:
        mask(pl_module, graph, kept)
        for shadow in averages(trainer):
            mask(shadow, graph, kept)
        pruner.held, pruner.recipe = dict(kept), Recipe()
        pruner.recipe.cut = False
        pruner.recipe.add(graph, kept)
        with released(trainer):  # as in a run that goes on: zeros first, else latent ones that are gone compete
            hold(pruner, trainer, pl_module)
    return True


def finish(pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> None:
    """The fit ends: what has been zeros until now leaves, where it was only to stay for the fit."""
    graph = pruner.watch.between_steps(pruner, trainer, pl_module)
    if graph is None:
        rank_zero_info(f"{pruner.name}: masked channels stay as zeros")
        return
    if pruner.hold:
        pruner.hold.detach()
        pruner.hold = None
    held, pruner.held, pruner.recipe = pruner.held, {}, Recipe()
    cut(pruner, trainer, pl_module, graph, held)
    pruner.watch.forget()


@torch.no_grad()
def _compensate(pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph, kept: Kept) -> None:
    """Fold the means of what goes into what reads it; the model's averages are shifted alike."""
    calibration = Calibration(pl_module, graph)
    with quiet(trainer, pl_module), eval_mode(pl_module), untouched_randomness(), calibration:
        for batch in samples(trainer, pruner.seed, pruner.batches):
            quiet_step(trainer, pl_module, batch)
    folding = calibration.fold(kept)
    for name, (tensor, old) in zip(folding.written, folding.saved, strict=True):
        for shadow in averages(trainer):
            average = tensors(shadow)[name]
            average.add_((tensor - old).to(average))


def _note(
    pruner: "BNChannelPruner",
    trainer: Any,
    pl_module: Any,
    graph: Graph,
    kept: Kept,
    unseen: dict[str, str],
    now: tuple[int, int],
) -> None:
    """The table, and a row of the history."""
    report = make_report(pl_module, graph, kept, why=unseen, samples=pruner.watch.samples)
    after = {**pruner.counts, **{name: len(index) for name, index in kept.items()}}
    channels = {name: [pruner.counts[name], count] for name, count in after.items()}
    pruner.history.add(Cut(*now, channels, list(report.params), list(report.flops)))
    pruner.counts = after
    how = "leave" if pruner.shrink == "live" else "are zero from here on"
    rank_zero_info(f"{pruner.name}: after {now[0]} epochs and {now[1]} steps channels {how}\n{report}")
