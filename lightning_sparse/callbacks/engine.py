"""The engine that a MaskUpdater drives, made for a Trainer's model and run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info
from lightning_sparse.callbacks.data import TrainerBatches, TrainerLoss, check_start, example_inputs
from lightning_sparse.callbacks.notices import announce
from lightning_sparse.callbacks.run import horizon
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.select import left_dense, select
from lightning_sparse.core.sparsifier import Sparsifier

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater


def chosen(updater: "MaskUpdater") -> Algorithm:
    """The algorithm, by its name or as given."""
    given = updater.algorithm
    return given if isinstance(given, Algorithm) else ALGORITHMS[given]()


def build(updater: "MaskUpdater", trainer: Any, pl_module: Any, state: Mapping[str, Any]) -> Sparsifier:
    """An engine with new masks, or with those of ``state`` where it is not empty.

    Raises:
        MisconfigurationException: if another MaskUpdater wants the same weights, or the algorithm lacks what it needs.
        ValueError: on whatever :class:`Sparsifier` refuses.
    """
    total, epoch = horizon(trainer)
    init, algorithm = updater.init, chosen(updater)
    if not state and trainer.ckpt_path is not None and init == "random":
        rank_zero_info(f"{updater.name}: the checkpoint was trained dense; the largest of its weights stay live.")
        init = "magnitude"
    _check_others(updater, trainer, pl_module)
    check_start(updater.name, algorithm, trainer, pl_module, new=not state)
    sparsifier = Sparsifier(
        pl_module,
        algorithm,
        updater.density_wanted,
        optimizers=trainer.optimizers,
        allocation=updater.allocation,
        pattern=updater.pattern,
        init=init,
        include=updater.include,
        exclude=updater.exclude,
        seed=updater.seed,
        total_steps=total,
        epoch_steps=epoch,
        state=state or None,
        batches=TrainerBatches(trainer, updater.seed),
        loss=TrainerLoss(trainer),
        example_inputs=example_inputs(trainer, pl_module, updater.seed)
        if algorithm.asks == "inputs" and not state
        else None,
    )
    if state and trainer.global_step == 0:
        sparsifier.restart(sparsifier.algorithm)
    announce(updater.name, sparsifier, left_dense(pl_module, sparsifier.params, updater.exclude))
    return sparsifier


def _check_others(updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
    """Before any of them has touched a weight."""
    mine = {target.name for target in select(pl_module, updater.include, updater.exclude)}
    for other in trainer.callbacks:
        if isinstance(other, type(updater)) and other is not updater:
            both = [t.name for t in select(pl_module, other.include, other.exclude) if t.name in mine]
            if both:
                raise MisconfigurationException(
                    f"{updater.name} and {other.name} both want {', '.join(both)}; give each its own include= globs"
                )
