"""The engine that a MaskUpdater drives, made for a Trainer's model and run."""

from collections.abc import Collection, Mapping, Sequence
from glob import escape
from typing import TYPE_CHECKING, Any

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info
from lightning_sparse.callbacks.computing.hindrances import refuse_compute
from lightning_sparse.callbacks.data import TrainerBatches, TrainerLoss, check_start, example_inputs
from lightning_sparse.callbacks.notices import announce
from lightning_sparse.callbacks.run import horizon
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.param import Init
from lightning_sparse.core.plan import Density
from lightning_sparse.core.select import left_dense, matches, select
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
    total, init, algorithm = horizon(trainer)[0], updater.init, chosen(updater)
    trained = trainer.ckpt_path is not None and trainer.global_step > 0  # finders restore a checkpoint of step 0
    if not state and trained and init == "random":
        rank_zero_info(f"{updater.name}: the checkpoint was trained dense; the largest of its weights stay live.")
        init = "magnitude"
    _check_others(updater, trainer, pl_module)
    refuse_compute(updater, trainer, pl_module, algorithm)
    check_start(updater.name, algorithm, trainer, pl_module, new=not state)
    later = [escape(name) for other in state.get("later", ()) for name in other["params"]]
    where = (updater.include, [*updater.exclude, *later])
    sparsifier = _engine(updater, trainer, pl_module, updater.density_wanted, init, where, total, state)
    if state and trainer.global_step == 0:
        sparsifier.restart(sparsifier.algorithm)
    announce(updater.name, sparsifier, left_dense(pl_module, sparsifier.params, [*updater.exclude, *later]))
    return sparsifier


def build_later(
    updater: "MaskUpdater",
    trainer: Any,
    pl_module: Any,
    names: Collection[str],
    begun: int,
    state: Mapping[str, Any] | None = None,
) -> Sparsifier:
    """An engine for layers that were frozen when training started, and are not any more.

    They are planned among themselves, at the density and by the allocation that the first ones were planned by, so the
    total density stays what was asked for. Their largest weights stay live: frozen weights come from elsewhere. Their
    steps are counted from here, for the rest of the run.

    Args:
        updater: whose settings they follow.
        trainer: in the fit.
        pl_module: its model.
        names: of the parameters.
        begun: optimizer steps that the run had taken by then.
        state: of this engine, from a checkpoint.

    Raises:
        ValueError: on whatever :class:`Sparsifier` refuses.
    """
    total, density = horizon(trainer)[0], updater.density_wanted
    if isinstance(density, Mapping):
        density = {glob: share for glob, share in density.items() if any(matches(name, [glob]) for name in names)}
    left = None if total is None else max(total - begun, 1)
    where = ([escape(name) for name in names], ())
    return _engine(updater, trainer, pl_module, density, "magnitude", where, left, state)


def _engine(
    updater: "MaskUpdater",
    trainer: Any,
    pl_module: Any,
    density: Density | None,
    init: Init,
    where: tuple[Sequence[str] | None, Sequence[str]],
    steps: int | None,
    state: Mapping[str, Any] | None,
) -> Sparsifier:
    """An engine with what all of one MaskUpdater have in common.

    Args:
        updater: whose settings it has.
        trainer: in the fit.
        pl_module: its model.
        density: of its layers.
        init: how its first masks are drawn.
        where: globs of what is sparse, and of what stays dense.
        steps: of the optimizer, from its first to the end of the run; None where unknown.
        state: from a checkpoint; none, or an empty one, makes new masks.
    """
    algorithm = chosen(updater)
    asked = algorithm.asks == "inputs" and not state
    return Sparsifier(
        pl_module,
        algorithm,
        density,
        optimizers=trainer.optimizers,
        allocation=updater.allocation,
        pattern=updater.pattern,
        init=init,
        include=where[0],
        exclude=where[1],
        seed=updater.seed,
        total_steps=steps,
        epoch_steps=horizon(trainer)[1],
        state=state or None,
        batches=TrainerBatches(trainer, updater.seed),
        loss=TrainerLoss(trainer),
        example_inputs=example_inputs(trainer, pl_module, updater.seed) if asked else None,
    )


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
