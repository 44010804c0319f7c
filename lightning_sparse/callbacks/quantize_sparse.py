"""Quantization of a sparse model while it is trained, as one callback."""

import weakref
from typing import Any, Literal

from lightning_sparse.callbacks.base import (
    Callback,
    rank_zero_info,
    rank_zero_warn,
    refers,
    without_model,
)
from lightning_sparse.callbacks.monitors import reset_monitors
from lightning_sparse.callbacks.quantizing.arguments import problems
from lightning_sparse.callbacks.quantizing.late import take_places
from lightning_sparse.callbacks.quantizing.phases import Phases, phases
from lightning_sparse.callbacks.quantizing.start import begin, check, start_zeros, warn_of_float_best
from lightning_sparse.callbacks.quantizing.state import for_evaluation, rebuilt, remember_all, saved
from lightning_sparse.callbacks.run import gather_random_states, go_on, refuse_strategy
from lightning_sparse.callbacks.torn import FileCheck
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.sparsifier import Sparsifier
from lightning_sparse.quant.quantization import Quantization
from lightning_sparse.quant.quantizer import Quantizer


class QuantizeSparse(Callback):
    """Quantizes the weights and activations of any LightningModule: what it computes is what its integers compute.

    Zeros stay exactly zero, in the float weights and in the integers, whatever the optimizer: those that a MaskUpdater
    keeps, and those that weights have when quantized training begins. From five bits on nothing changes while training:
    ranges of activations are calibrated when the fit ends. Below, the last quarter of the run sees quantized weights
    and activations, and gradients go straight through. Checkpoints keep the dense model's keys and float weights. After
    the fit parameters are floats, ``quantization`` says what export needs, and ``Trainer.validate``, ``test`` and
    ``predict`` run the quantized model. A run that is resumed goes on bit for bit.

    Args:
        bits: of weights, 2 to 8; for each glob over names (the first that fits counts; None: float; 8 where none
            fits); or "auto": by layer, under a budget.
        at: quantized training from this epoch on (a whole number), or after this share of the run's steps (below 1).
            None: after 3/4 if a weight has fewer than 5 bits, else none.
        avg_bits: the budget of "auto": bits of a live weight on average.
        max_bytes: instead: bytes of all quantized weights as they are stored.
        act_bits: of activations, 4 to 8; None leaves them in float.
        include: globs over parameter or module names; None takes all Linear layers and convolutions.
        exclude: globs of what stays in float.
        calibrate_batches: of the training data, that ranges (and "auto") are found by.
        reset_monitors: whether ModelCheckpoint and EarlyStopping begin anew when quantized training begins.
        restore_rng: whether a resumed run also gets back the random states of torch, CUDA, numpy and Python.
        name: tells several QuantizeSparse of one Trainer apart, also in checkpoints.

    Raises:
        ValueError: on arguments that cannot be right, all at once.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> quantize, model = QuantizeSparse(bits=4), BoringModel()
        >>> trainer = Trainer(max_steps=8, callbacks=[quantize], logger=False, barebones=True)
        >>> trainer.fit(model)
        >>> int(quantize.quantization.codes(model)["layer.weight"].codes.abs().max())
        8
    """

    def __init__(
        self,
        bits: int | dict[str, int | None] | Literal["auto"] = 8,
        *,
        at: int | float | None = None,
        avg_bits: float | None = None,
        max_bytes: int | None = None,
        act_bits: int | None = 8,
        include: list[str] | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        calibrate_batches: int = 32,
        reset_monitors: bool = False,
        restore_rng: bool = True,
        name: str = "QuantizeSparse",
    ) -> None:
        self.bits, self.at, self.avg_bits, self.max_bytes, self.act_bits = bits, at, avg_bits, max_bytes, act_bits
        self.include, self.exclude, self.calibrate_batches = include, exclude, calibrate_batches
        self.reset_monitors, self.restore_rng, self.name = reset_monitors, restore_rng, name
        raise_problems(problems(self), "QuantizeSparse")
        self.quantizer: Quantizer | None = None  # while a Trainer runs
        self.zeros: Sparsifier | None = None
        self.densities: dict[str, float] = {}  # of what it keeps zero
        self.steps = self.begun = 0  # of the optimizer so far; when quantized training began
        self._phases: Phases | None = None
        self.state: dict[str, Any] = {}  # of the last fit, or from a checkpoint
        self.model: weakref.ref[Any] | None = None  # whose it is
        self._failed = False
        self._odd = 0
        self._file = FileCheck()

    # What a user reads ---------------------------------------------------------------------------------------------

    @property
    def quantization(self) -> Quantization | None:
        """Layers with their bits, ranges of activations, what stays in float and why; None before there is one."""
        if self.quantizer is not None:
            return self.quantizer.quantization
        return Quantization.from_state(self.state["quantization"]) if "quantization" in self.state else None

    @property
    def engines(self) -> list[Sparsifier]:
        """What keeps the zeros of weights that no MaskUpdater has."""
        return [self.zeros] if self.zeros is not None else []

    # Lightning's hooks ---------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Where checkpoints keep this callback's state; fixed, whatever the hyper-parameters."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work."""
        self._file.begin()
        if stage == "fit":
            self._phases = None
            refuse_strategy(trainer, "QuantizeSparse")
        take_places(trainer, self)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Random states of a run that goes on come back before anything is drawn."""
        self._failed = False
        self._file.look(trainer)
        if trainer.ckpt_path is None and (trainer.global_step == 0 or not refers(self.model, pl_module)):
            self.state = {}  # another run; what test(ckpt_path=...) loaded is not for it
        counted = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
        self.steps = self.state.get("steps", counted) if trainer.global_step > 0 else 0
        go_on(trainer, self.state.pop("rng", None), self.restore_rng)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin, if it is time: before others watch this step, or draw weights for it."""
        if self.quantizer is None and self._phases and self._phases.due(trainer.current_epoch, self.steps):
            self.begun = self.steps
            self._follow(begin(self, trainer, pl_module), trainer, pl_module, {})
            if self.reset_monitors:
                reset_monitors(self.name, trainer, "quantized training begins")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are final: what comes (penalties, masks, the step itself) is about floats."""
        if self.quantizer is not None:
            self.quantizer.restore(unwrap(optimizer))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Averages, checkpoints and other callbacks meet floats."""
        self.close()
        self.steps += not trainer.fit_loop._should_accumulate()  # Lightning's own count lags in checkpoints
        if self.quantizer is not None and self._phases is not None and not self.quantizer.frozen:
            self.quantizer.step()
            if self._phases.resting(self.steps, self.begun):
                self.quantizer.freeze()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so when batches were not finite."""
        self.close()
        if self.quantizer is not None and self.quantizer.odd > self._odd:
            self._odd = self.quantizer.odd
            rank_zero_warn(f"{self.name}: activations with NaN or infinity came; they do not move ranges")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Outside of a fit the quantized model is meant, and there must be one."""
        self.close()
        if trainer.state.fn != "fit" and self.quantizer is None:
            self.quantizer = for_evaluation(self, pl_module)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Before averages are swapped back."""
        self.close()

    on_test_epoch_end = on_predict_epoch_end = on_validation_end = on_test_end = on_predict_end = (
        on_validation_epoch_end
    )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of model and optimizers; weights are floats."""
        self._let_go(keep=stage == "fit")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go: ``teardown`` is not called after errors."""
        self._failed = True
        self._file.explain(trainer, exception)
        self._let_go(keep=trainer.state.fn == "fit")

    def state_dict(self) -> dict[str, Any]:
        """Layers, bits, ranges, what keeps zeros, and the random states."""
        state = saved(self) if self.quantizer is not None else {**self.state, "steps": self.steps}
        return {**state, "rng": gather_random_states(alone=self._failed)}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Where the file has no quantization, a fit starts without; an evaluation keeps the ranges of the last fit."""
        self._file.look(trainer)
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if "quantization" in state or trainer.state.fn == "fit":
            self.state, self.model = {}, weakref.ref(pl_module)
        elif self.state and refers(self.model, pl_module):
            rank_zero_info(f"{self.name}: the checkpoint is from before quantization; its ranges are the last fit's")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the model is there."""
        if not self.state or "quantization" in state_dict:
            self.state = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy without the model."""
        state = saved(self) if self.quantizer is not None else self.state
        return {**without_model(self), "quantizer": None, "zeros": None, "model": None, "state": state}

    # How: called by the other half, which stands last in the Trainer's list ---------------------------------------

    def fit_starts(self, trainer: Any, pl_module: Any) -> None:
        """Check what is asked for; go on where a run that is resumed was quantized already."""
        self._let_go(keep=False)
        check(self, trainer, pl_module)
        self._phases = phases(self.name, self.at, self.bits, trainer)
        self.model, self._odd = weakref.ref(pl_module), 0
        if "quantization" in self.state and self._phases.trains:
            self.begun = int(self.state["begun"])
            self._follow(rebuilt(self.state, pl_module, self.name), trainer, pl_module, self.state.get("zeros", {}))
            assert self.quantizer is not None
            self.quantizer.freeze(self._phases.resting(self.steps, self.begun))
        elif self._phases.trains and not self.reset_monitors:
            warn_of_float_best(self.name, trainer)

    def batch_starts(self, trainer: Any) -> None:
        """A training step comes, perhaps with an optimizer that was made during the run."""
        if self.quantizer is not None:
            for optimizer in trainer.optimizers:
                self.quantizer.attach(optimizer)
                for engine in self.engines:
                    engine.attach(optimizer)
            self.open()

    def fit_ends(self, trainer: Any, pl_module: Any) -> None:
        """Calibrate, where nothing was quantized so far; what has come out is kept, also for export."""
        if self.quantizer is None:
            if self._phases is not None and self._phases.trains:
                rank_zero_warn(f"{self.name}: the run ended before quantized training began; it is calibrated only")
            self.begun = self.steps
            self.quantizer = begin(self, trainer, pl_module)
        self.quantizer.close()
        self.quantizer.freeze()
        self.state = saved(self)
        remember_all(self, trainer, pl_module)

    def fit_is_over(self, trainer: Any, pl_module: Any) -> None:
        """A checkpoint of the last epoch's end has nothing left to train, and was written before the fit had ended."""
        if self._phases is None and trainer.ckpt_path is not None and trainer.fit_loop.done:
            self.steps = self.state.get("steps", trainer.global_step)
            self.fit_starts(trainer, pl_module)
            self.fit_ends(trainer, pl_module)

    def open(self) -> None:
        """Forward passes come: they see the grid."""
        if self.quantizer is not None:
            self.quantizer.open()
            self.quantizer.show()

    def close(self) -> None:
        """Parameters show floats."""
        if self.quantizer is not None:
            self.quantizer.close()

    def _follow(self, quantizer: Quantizer, trainer: Any, pl_module: Any, zeros: dict[str, Any]) -> None:
        self.quantizer = quantizer
        start_zeros(self, trainer, pl_module, zeros)

    def _let_go(self, keep: bool) -> None:
        if self.quantizer is not None:
            if keep:
                self.state = saved(self)
            self.quantizer.detach()
            self.quantizer = None
        for engine in self.engines:
            engine.detach()
        self.zeros = None
