"""A penalty on weights, gammas or activations as one callback."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sparse.callbacks.base import (
    Callback,
    MisconfigurationException,
    rank_zero_info,
    rank_zero_warn,
    without_model,
)
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.run import horizon, refuse_strategy, stand_before
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.schedules import Schedule
from lightning_sparse.penalties import PENALTIES, ActivationRegularizer, Penalty, WeightRegularizer
from lightning_sparse.penalties.choose import argument_problems

PenaltyName = Literal["l1", "l2", "elastic", "group_lasso", "hoyer"]


class Regularizer(Callback):
    """Adds a penalty to any LightningModule's training: no change to its loss, its code or its checkpoints.

    On weights and gammas the penalty's gradient is added once an optimizer step, to gradients that are accumulated,
    averaged and unscaled, before they are clipped; with ``proximal=True`` nothing is added, and weights are shrunk
    after each step instead, to exact zeros. On activations it is added in the backward pass. The loss that the model
    logs stays the task's; what the penalty would have added to it is logged beside it as ``<name>/penalty``.

    It goes with a MaskUpdater, before or after it in the list: gradients are penalized first and masked then, and
    masked weights stay zero. A resumed run goes on bit for bit.

    Args:
        penalty: "l1", "l2", "elastic", "group_lasso" or "hoyer", or an object such as ``GroupLasso("kernels")``.
        strength: a number, a Schedule over the run, or one for each glob over names (the first that matches counts).
        on: "weights", "gammas" (the weights of BatchNorm, as in network slimming), or "activations" (the outputs of
            modules; each sample's penalty, averaged over the batch).
        proximal: whether weights are shrunk by the proximal operator, at ``lr * strength``, after each step.
        include: globs over parameter or module names (activations: module names); None takes the weights that a
            MaskUpdater would take, all gammas, or ReLU and its like.
        exclude: globs of what stays free.
        name: tells several Regularizers of one Trainer apart, also in checkpoints and logs.

    Raises:
        ValueError: on arguments that cannot be right, all at once.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> regularizer, model = Regularizer("l1", strength=10.0, proximal=True), BoringModel()
        >>> trainer = Trainer(max_steps=8, callbacks=[regularizer], logger=False, barebones=True)
        >>> trainer.fit(model)
        >>> int(model.layer.weight.count_nonzero())
        0
    """

    def __init__(
        self,
        penalty: PenaltyName | Penalty = "l1",
        strength: float | Schedule | dict[str, float | Schedule] = 1e-4,
        *,
        on: Literal["weights", "gammas", "activations"] = "weights",
        proximal: bool = False,
        include: list[str] | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        name: str = "Regularizer",
    ) -> None:
        made = PENALTIES.get(penalty, penalty) if isinstance(penalty, str) else penalty
        problems = argument_problems(made, strength, on, proximal, include, exclude)
        if not isinstance(name, str):
            problems.append(f"name must be str, got {name!r}")
        raise_problems(problems, "Regularizer")
        assert isinstance(made, Penalty), "all else is a problem"
        self.penalty, self.strength, self.on, self.proximal, self.name = made, strength, on, proximal, name
        self.include, self.exclude = include, exclude
        self.engine: WeightRegularizer | ActivationRegularizer | None = None
        self._steps: list[int] = []  # of the fit before
        self._loaded: list[int] | None = None  # from a checkpoint
        self._ran, self._backward_passes = False, 0

    @property
    def state_key(self) -> str:
        """Where checkpoints keep this callback's state; fixed, whatever the hyper-parameters."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work; stand before MaskUpdaters, which are to see the penalized gradient."""
        if stage == "fit":
            refuse_strategy(trainer, "Regularizer")
            stand_before(trainer, self, MaskUpdater)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose what is penalized and follow the optimizers: only now are model, optimizers and state in place."""
        if trainer.ckpt_path is not None:  # what test(ckpt_path=...) loaded is not for this run
            self._steps = self._loaded or []
        steps = self._steps if trainer.global_step > 0 else []
        shared: dict[str, Any] = {"include": self.include, "exclude": self.exclude, "total_steps": horizon(trainer)[0]}
        if self.on == "activations":
            self.engine = ActivationRegularizer(pl_module, self.penalty, self.strength, steps=steps, **shared)
            self.engine.factor = None  # until Lightning's backward pass
        else:
            where, how = self.on, self.proximal
            self.engine = WeightRegularizer(
                pl_module, self.penalty, self.strength, on=where, proximal=how, steps=steps, **shared
            )
        self._loaded, self._ran = None, False
        try:
            for optimizer in trainer.optimizers:
                self.engine.attach(optimizer)
        except (TypeError, ValueError):
            self.engine.detach()
            raise
        self._announce(self.engine)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Forget what was added for a step that a gradient scaler skipped; look closer where it will be logged."""
        self._backward_passes = 0
        if isinstance(self.engine, ActivationRegularizer):
            self.engine.seen, self._stepped = 0, self.engine.steps
            self.engine.measure(logs(trainer))
        elif self.engine:
            self.engine.discard()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Activations pay in this backward pass, weighed as its loss is."""
        if isinstance(self.engine, ActivationRegularizer):
            self._backward_passes += 1
            scale = scale_of(trainer, loss.device)
            self.engine.factor = (1.0 if scale is None else scale) / trainer.accumulate_grad_batches

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Whatever else runs backward is the user's own business."""
        if isinstance(self.engine, ActivationRegularizer):
            self.engine.factor = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are accumulated and averaged, not yet clipped; unscaled unless a fused optimizer does that."""
        if isinstance(self.engine, WeightRegularizer):
            self.engine.add(optimizer, scale_left(trainer, pl_module.device, optimizer))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the penalty where the loss is logged."""
        if isinstance(self.engine, ActivationRegularizer):
            self._check(pl_module, self.engine)
        if self.engine and logs(trainer):
            pl_module.log(f"{self.name}/penalty", self.engine.value(), batch_size=1)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of model and optimizers."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go: ``teardown`` is not called after errors."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """How many steps each optimizer has taken: all that a schedule needs."""
        counts = self._counts()
        return {"version": 1, "steps": list(counts)} if counts else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's counts until a fit starts."""
        self._loaded = list(state_dict["steps"])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy without the model."""
        return {**without_model(self), "engine": None, "_steps": list(self._counts())}

    def _counts(self) -> Sequence[int]:
        return self.engine.steps if self.engine else self._loaded or self._steps

    def _close(self) -> None:
        if self.engine:
            self._steps = self.engine.steps
            self.engine.detach()
            self.engine = None

    def _announce(self, engine: WeightRegularizer | ActivationRegularizer) -> None:
        """Say what is penalized, and what is not though it might be expected."""
        layers = engine.targets if isinstance(engine, WeightRegularizer) else engine.modules
        how = f"strength {self.strength}{', proximal' if self.proximal else ''}"
        rank_zero_info(f"{self.name}: {self.penalty} on {self.on} of {len(layers)} layers, {how}")
        if isinstance(engine, WeightRegularizer):
            if engine.left_out:
                rank_zero_info(f"{self.name}: left out {'; '.join(engine.left_out)}")
            if lost := engine.unattached():
                rank_zero_warn(f"{self.name}: no optimizer steps {', '.join(lost)}: they are not penalized")

    def _check(self, pl_module: Any, engine: ActivationRegularizer) -> None:
        """No silent penalty that nobody pays."""
        if not self._ran and not engine.seen:
            rank_zero_warn(
                f"{self.name}: in the first batch no output of {', '.join(engine.modules)} was there to be penalized"
            )
        self._ran = True
        if engine.seen and not self._backward_passes and engine.steps != self._stepped:
            raise MisconfigurationException(
                f"{self.name}: a step was taken without a backward pass of Lightning's, so activations have not paid; "
                "call self.manual_backward(loss) instead of loss.backward()"
            )


def scale_of(trainer: Any, device: torch.device) -> Tensor | None:
    """What a gradient scaler multiplies losses with now, if there is one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.scale(torch.ones((), device=device))


def scale_left(trainer: Any, device: torch.device, optimizer: Any) -> Tensor | None:
    """What gradients still carry of a gradient scaler right before a step: a fused optimizer unscales them itself."""
    return scale_of(trainer, device) if getattr(unwrap(optimizer), "_step_supports_amp_scaling", False) else None


def logs(trainer: Any) -> bool:
    """Whether what is logged in this batch reaches a logger."""
    every = trainer.log_every_n_steps  # 0 in a bare trainer
    return bool(every) and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0
