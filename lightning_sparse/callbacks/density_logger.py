"""Watching sparsity: scalars for any logger, pictures where the logger can show them, two tables."""

import weakref
from typing import Any

from lightning_sparse.callbacks.base import (
    Callback,
    MisconfigurationException,
    rank_zero_info,
    refers,
    without_model,
)
from lightning_sparse.callbacks.batch_flops import BatchFlops
from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner
from lightning_sparse.callbacks.channels.logged import channel_details, channel_pruners, channel_scalars
from lightning_sparse.callbacks.charts import add_layout, show_masks, show_weights
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.run import stand_before
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import batch_size
from lightning_sparse.core.param import SparseParam, densities
from lightning_sparse.core.sparsifier import Sparsifier
from lightning_sparse.core.values import is_whole, wrong_flags
from lightning_sparse.watch import SparsityWatch


class DensityLogger(Callback):
    """Logs what a MaskUpdater and a BNChannelPruner do, and prints a table at the start and at the end of a fit.

    ``density``, ``nonzero_density`` and ``flops_share`` go through ``LightningModule.log``: ModelCheckpoint and
    EarlyStopping can monitor them. Per layer ``density/<layer>`` and ``nonzero/<layer>``, and for the masks' health
    ``masks/changed``, ``masks/explored``, ``masks/overlap``, ``masks/dead_inputs``, ``masks/dead_outputs`` and
    ``masks/training_flops_share`` go to every logger, the same keys from step 0 on.

    Of a BNChannelPruner it logs ``<name>/channels`` and ``<name>/flops_share``, shares of what there was before the
    first cut, and ``<name>/channels/<layer>``, channels that are left. The densities and ``flops_share`` above are of
    the model as it is then.

    A grown weight is zero until it has learned, so the non-zero share lags behind the density. FLOPs are those of
    hardware that skips zeros, counted on the first batch.

    Args:
        every: optimizer steps between two log entries; None takes ``Trainer(log_every_n_steps)``.
        per_layer: whether each layer is logged by itself.
        images: whether pictures of masks and of densities over time are shown when masks have moved.
        histograms: whether live weights are shown as histograms at the end of each epoch.
        layout: whether TensorBoard gets one chart of all layers (it takes the place of a layout of your own).
        name: tells several DensityLoggers of one Trainer apart.

    Raises:
        ValueError: if ``every`` is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> callbacks = [MaskUpdater("static", density=0.25), DensityLogger()]
        >>> trainer = Trainer(max_steps=4, callbacks=callbacks, logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)
        >>> trainer.fit(BoringModel())
        >>> float(trainer.callback_metrics["density"])
        0.25
    """

    def __init__(
        self,
        every: int | None = None,
        *,
        per_layer: bool = True,
        images: bool = False,
        histograms: bool = False,
        layout: bool = False,
        name: str = "DensityLogger",
    ) -> None:
        self.every, self.per_layer, self.name = every, per_layer, name
        self.images, self.histograms, self.layout = images, histograms, layout
        raise_problems(self._problems(), "DensityLogger")
        self.watch = SparsityWatch()
        self._batch = BatchFlops()
        self._model: weakref.ref[Any] | None = None
        self._first: tuple[int, dict[str, float], dict[str, float]] | None = None
        self._started, self._anew, self._moves, self._steps = False, True, (0, 0, 0), 0

    @property
    def state_key(self) -> str:
        """Where checkpoints keep this callback's state."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """There must be something to log."""
        known = any(isinstance(callback, MaskUpdater | BNChannelPruner) for callback in trainer.callbacks)
        for pruner in channel_pruners(trainer):
            stand_before(trainer, pruner, DensityLogger)
        if stage == "fit" and not known:
            raise MisconfigurationException(
                "DensityLogger found no MaskUpdater; add one, or a BNChannelPruner, to Trainer(callbacks=[...])"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Another fit, perhaps of another model."""
        self._started = False
        if self._model is not None and not refers(self._model, pl_module) and trainer.ckpt_path is None:
            self.watch = SparsityWatch()  # another model has another history
        self._model = weakref.ref(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first entry: every key is there from step 0 on, and masks are made by now; a run that goes on has it.

        FLOPs are counted on this batch; the hooks are gone after it.
        """
        if not self._started and _updaters(trainer):
            params = _params(trainer)
            self._started, self._steps = True, _steps(trainer)
            self._batch.begin(pl_module, params)
            self._anew = _log_step(trainer) == 0 or not self.watch.densities
            if self._anew:
                self._note(trainer, params)
            self._moves = _moves(trainer) if self.watch.fits(params) else (0, 0, 0)  # else they were cut just now
            values = self.watch.scalars(params) | self._details(params)
            self._first = (_log_step(trainer), values, densities(params))
            if self.layout:
                add_layout(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass that is counted is over."""
        self._batch.forward_ends(_params(trainer) if self._first else {})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and log where it is time to."""
        if self._first:
            self._begin(trainer, batch)
        if self._steps == (steps := _steps(trainer)):
            return  # inside a window of accumulated batches, or the step was skipped
        self._steps, params = steps, _params(trainer)
        if params:
            if self._moves != (moves := _moves(trainer)):
                self._moves = moves
                self._note(trainer, params)  # first: what was cut costs less from this step on
            self.watch.count(params, any(e.algorithm.needs_gradient(e.steps) for e in _engines(trainer)))
        every = self.every or trainer.log_every_n_steps  # 0 in a bare trainer
        if every and (_log_step(trainer) + 1) % every == 0:
            self._log(trainer, pl_module, params)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """What can be monitored is there at the end of every epoch; histograms, where the logger has them."""
        self._monitor(trainer, pl_module, self._scalars(trainer, _params(trainer)))
        if self.histograms:
            show_weights(trainer, _params(trainer), _log_step(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The table of what came out."""
        if self._started:
            rank_zero_info(self.watch.report(_params(trainer)))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave no hook behind."""
        self._batch.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._batch.close()

    def state_dict(self) -> dict[str, Any]:
        """The masks' history and the FLOPs so far."""
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.watch.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks."""
        return {**without_model(self), "_batch": BatchFlops(), "_model": None}

    def _problems(self) -> list[str]:
        found = wrong_flags(self, "per_layer", "images", "histograms", "layout")
        if self.every is not None and not (is_whole(self.every) and self.every >= 1):
            found.append(f"every must be a positive number of optimizer steps, got {self.every!r}")
        return found + ([] if isinstance(self.name, str) else [f"name must be str, got {self.name!r}"])

    def _begin(self, trainer: Any, batch: Any) -> None:
        """The entry and the table of the start, now that the FLOPs of a batch are known."""
        self._batch.end()
        self.watch.flops = self._batch.flops
        if self._first:
            step, values, densities = self._first
            share = self.watch.flops_share(densities)
            if share:  # before anything was spent
                values = {"masks/training_flops_share": share["flops_share"]} | values
            if self._anew:
                self._write(trainer, values | share, step)
            self._first = None
        plans, samples = [updater.plan for updater in _updaters(trainer)], batch_size(batch)
        if self.watch.flops and samples:
            plans = [plan.counted({name: f / samples for name, f in self.watch.flops.items()}) for plan in plans]
        rank_zero_info("\n".join(map(str, plans)))
        planned, now = sum(plan.live for plan in plans), sum(p.live for p in _params(trainer).values())
        if planned != now:
            rank_zero_info(f"planned for the end; now {now:,} weights live")

    def _scalars(self, trainer: Any, params: dict[str, SparseParam]) -> dict[str, float]:
        return (self.watch.scalars(params) if params else {}) | channel_scalars(trainer)

    def _note(self, trainer: Any, params: dict[str, SparseParam]) -> None:
        self._batch.follow(params)
        self.watch.note(params)
        if self.images:
            show_masks(trainer, params, self.watch.densities, _log_step(trainer))

    def _details(self, params: dict[str, SparseParam]) -> dict[str, float]:
        return self.watch.health() | (self.watch.per_layer(params) if self.per_layer else {})

    def _log(self, trainer: Any, pl_module: Any, params: dict[str, SparseParam]) -> None:
        scalars = self._scalars(trainer, params)
        self._monitor(trainer, pl_module, scalars)
        details = (self._details(params) if params else {}) | (channel_details(trainer) if self.per_layer else {})
        self._write(trainer, scalars | details, _log_step(trainer))

    def _monitor(self, trainer: Any, pl_module: Any, scalars: dict[str, float]) -> None:
        for key, value in scalars.items() if not trainer.barebones else ():
            pl_module.log(key, value, logger=False, batch_size=1)

    def _write(self, trainer: Any, values: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def _updaters(trainer: Any) -> list[MaskUpdater]:
    return [callback for callback in trainer.callbacks if isinstance(callback, MaskUpdater) and callback.sparsifier]


def _engines(trainer: Any) -> list[Sparsifier]:
    return [engine for updater in _updaters(trainer) for engine in updater.engines]


def _params(trainer: Any) -> dict[str, SparseParam]:
    return {name: p for engine in _engines(trainer) for name, p in engine.params.items()}


def _steps(trainer: Any) -> int:
    stepped = not trainer.fit_loop._should_accumulate()
    return sum(engine.steps for engine in _engines(trainer)) if _updaters(trainer) else _log_step(trainer) + stepped


def _moves(trainer: Any) -> tuple[int, int, int]:
    """How many engines there are (layers may have been unfrozen), how often masks have moved, and over how much.

    Numbers only, for it is asked after each step; a layer that loses channels has fewer weights.
    """
    engines = _engines(trainer)
    sizes = (p.size for engine in engines for p in engine.params.values())
    return len(engines), sum(engine.updates for engine in engines), sum(sizes)


def _log_step(trainer: Any) -> int:
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped  # the x-axis of everything a module logs
    return step
