"""How a fit with a BNChannelPruner begins."""

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info, rank_zero_warn, refers
from lightning_sparse.callbacks.channels.state import take
from lightning_sparse.callbacks.channels.surgery import refuse_sharded_optimizers
from lightning_sparse.callbacks.channels.workers import refuse_unprepared
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.monitors import watchers
from lightning_sparse.callbacks.run import go_on, refuse_strategy, stand_before
from lightning_sparse.channels.criteria import named
from lightning_sparse.channels.hold import ChannelHold

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner

_BATCHNORM = nn.modules.batchnorm._BatchNorm


def before_fit(pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> None:
    """Refuse what cannot work, before anything is built; stand before MaskUpdaters.

    Raises:
        MisconfigurationException: with the way out.
    """
    refuse_strategy(trainer, "BNChannelPruner")
    refuse_unprepared(pruner, trainer, pl_module)
    others = [each for each in trainer.callbacks if isinstance(each, type(pruner)) and each is not pruner]
    if others:
        raise MisconfigurationException(
            f"{pruner.name} and {others[0].name} would each cut the other's channels; one BNChannelPruner with "
            "exclude=[...] and at=[...] does both"
        )
    stand_before(trainer, pruner, MaskUpdater)  # gradients are penalized first, and masked then


def begin(pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> None:
    """Take up a checkpoint's state or begin anew, and follow the optimizers.

    Raises:
        MisconfigurationException: if there is no BatchNorm and one is needed, or a state is spread over processes.
    """
    _refuse_without_batchnorm(pruner, pl_module)
    refuse_sharded_optimizers(pruner.name, trainer)
    rng = _restore(pruner, trainer, pl_module)
    if pruner.gamma_init is not None and trainer.global_step == 0 and not pruner.done:
        with torch.no_grad():
            for module in pl_module.modules():
                if isinstance(module, _BATCHNORM) and module.weight is not None:
                    module.weight.fill_(pruner.gamma_init)
    assert pruner.moments is not None
    if not pruner.moments.over(pruner.done):
        pruner.pull.start(trainer, pl_module)
    if not pruner.decay_gammas:
        pruner.pull.spare_gammas(trainer, pl_module)
    if pruner.held:
        hold(pruner, trainer, pl_module)
    _warn(pruner, trainer)
    go_on(trainer, rng, pruner.restore_rng)


def hold(pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> None:
    """Keep channels at zero that are still there."""
    if pruner.hold:
        pruner.hold.detach()
    pruner.hold = ChannelHold(pl_module, pruner.recipe.indices())
    for optimizer in trainer.optimizers:
        pruner.hold.attach(optimizer)


def _restore(pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> Any:
    """Returns the random states to go on with, if there are some."""
    state, pruner.pending = pruner.pending, {}
    same = refers(pruner.model, pl_module)
    if trainer.ckpt_path is None and not (refers(pruner.loaded, pl_module) and not same):
        state = {}  # what test(ckpt_path=...) loaded was for another model, or was taken up then
    pruner.model = weakref.ref(pl_module)
    if state:
        take(pruner, state)
        return state.get("rng") if trainer.ckpt_path is not None else None
    pruner.steps = 0
    if not same:
        take(pruner, {})
    if trainer.global_step == 0:  # another run, of the model as it is now
        pruner.done, pruner.first, pruner.counts = 0, {}, {}
        pruner.pull.forget()
    if same and trainer.global_step == 0 and pruner.held:
        rank_zero_info(f"{pruner.name}: channels that an earlier fit has masked stay so")
    return None


def _refuse_without_batchnorm(pruner: "BNChannelPruner", pl_module: Any) -> None:
    found = [m for m in pl_module.modules() if isinstance(m, _BATCHNORM) and m.weight is not None]
    needs = []
    if pruner.criterion == "gamma" or type(named(pruner.criterion)).__name__ == "Gamma":
        needs.append('criterion="gamma" ranks by (take "l1", "bn_std" ... )')
    if pruner.penalty in ("subgradient", "proximal"):
        needs.append(f'penalty="{pruner.penalty}" pulls (take "group_lasso" or None)')
    if needs and not found:
        raise MisconfigurationException(
            f"{pruner.name}: the model has no BatchNorm with weights (affine=True), which {' and '.join(needs)}"
        )


def _warn(pruner: "BNChannelPruner", trainer: Any) -> None:
    """Of what will not happen, and of a best model that may be a larger one."""
    assert pruner.moments is not None
    moments, epochs = pruner.moments, trainer.max_epochs
    if moments.unit == "epochs" and epochs not in (None, -1) and moments.at:
        late = [moment for moment in moments.at if moment > epochs]
        if late:
            rank_zero_warn(f"{pruner.name}: the run ends after {epochs} epochs, before {late}: keep is not reached")
        elif moments.at[-1] == epochs and pruner.keep < 1:
            rank_zero_warn(f"{pruner.name}: the last channels leave when the run ends, and nothing trains after that")
    if moments.over(pruner.done) or pruner.reset_monitors or pruner.keep == 1:
        return
    if found := watchers(trainer):
        kinds = ", ".join(sorted({type(each).__name__ for each in found}))
        rank_zero_warn(
            f"{pruner.name}: the best model that {kinds} finds may be a larger one, from before the last channels are "
            "cut; reset_monitors=True lets them begin anew there"
        )
