"""Sparse training as one callback."""

import weakref
from dataclasses import replace
from typing import Any, Literal

from lightning_sparse.callbacks.arguments import problems
from lightning_sparse.callbacks.base import Callback, refers, without_model
from lightning_sparse.callbacks.computing.computing import Computing
from lightning_sparse.callbacks.engine import build, chosen
from lightning_sparse.callbacks.learning_rate import LearningRate
from lightning_sparse.callbacks.monitors import reset_monitors, warn_of_dense_best
from lightning_sparse.callbacks.notices import Unstepped, warn, warn_of_time
from lightning_sparse.callbacks.run import (
    follow_averages,
    gather_random_states,
    go_on,
    horizon,
    refuse_strategy,
    restore_random_states,
)  # fmt: skip
from lightning_sparse.callbacks.torn import FileCheck
from lightning_sparse.callbacks.unfrozen import Unfrozen, all_saved_masks
from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import Init
from lightning_sparse.core.patterns import Pattern
from lightning_sparse.core.plan import Plan
from lightning_sparse.core.sparsifier import Sparsifier

AlgorithmName = Literal[
    "static", "snip", "grasp", "synflow",
    "set", "rigl", "sparse_momentum", "dsr", "mest", "srigl",
    "gmp", "global_magnitude", "granet", "acdc",
    "str", "l0", "topkast", "srste",
]  # fmt: skip


class MaskUpdater(Callback):
    """Trains any LightningModule sparse: no change to its code, its parameter names or its checkpoints.

    Weights outside the masks are zero in every forward pass; masks move after optimizer steps as the algorithm says.
    ``state_dict`` keeps the dense model's keys and shapes, so a checkpoint loads without this package. Masks, counters
    and random states are in the callback's own state: a run that is resumed goes on bit for bit (not from inside a
    window of accumulated batches, whose gradients no checkpoint holds). Layers that are frozen at first become sparse
    when they become trainable: at the same density among themselves, the largest of their weights live.

    Args:
        algorithm: a name ("static", "rigl", "gmp", "snip", "str" ...), or an object such as ``RigL(every=200)``.
        density: live share of all chosen weights together, in (0, 1], or one for each glob over names; None takes the
            pattern's or the algorithm's own (NM(2, 4): 0.5; STR and L0: what comes out), else 0.1.
        allocation: how density is shared over layers: "uniform", "er", "erk" or "global"; None takes the algorithm's.
        pattern: the shape that live weights may take; None lets any weight live.
        init: "random", or "magnitude" to keep the largest weights of a model that is trained already.
        include: globs over parameter or module names; None takes Linear, convolution, attention and recurrent weights.
        exclude: globs of what stays dense.
        compute: "dense" multiplies with zeros; "sparse": weights, gradients and optimizer state exist for live weights
            only while fit lasts, and only these are multiplied; "auto" measures both for each layer.
        seed: of the masks' randomness; the global random state is never touched.
        reset_monitors: whether ModelCheckpoint and EarlyStopping begin anew when the final density is reached; else the
            best model under algorithms that begin dense may be one from before.
        restore_rng: whether a resumed run also gets back the random states of torch, CUDA, numpy and Python.
        name: tells several MaskUpdaters of one Trainer apart, also in checkpoints.

    Raises:
        ValueError: on arguments that cannot be right, all at once.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_sparse import RigL
        >>> updater = MaskUpdater(RigL(every=2), density=0.25)
        >>> trainer = Trainer(max_steps=8, callbacks=[updater], logger=False, barebones=True)
        >>> trainer.fit(BoringModel())
        >>> updater.density()
        0.25
    """

    def __init__(
        self,
        algorithm: AlgorithmName | Algorithm = "rigl",
        density: float | dict[str, float] | None = None,
        *,
        allocation: AllocationName | None = None,
        pattern: Pattern | None = None,
        init: Init = "random",
        include: list[str] | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        compute: Literal["dense", "sparse", "auto"] = "dense",
        seed: int = 0,
        reset_monitors: bool = False,
        restore_rng: bool = True,
        name: str = "MaskUpdater",
    ) -> None:
        self.algorithm, self.density_wanted, self.allocation = algorithm, density, allocation
        self.pattern, self.init, self.compute = pattern, init, compute
        self.include, self.exclude = include, exclude
        self.seed, self.reset_monitors, self.restore_rng, self.name = seed, reset_monitors, restore_rng, name
        raise_problems(problems(self), "MaskUpdater")
        self.sparsifier: Sparsifier | None = None
        self._model: weakref.ref[Any] | None = None
        self._loaded: weakref.ref[Any] | None = None  # what a checkpoint's weights went into last
        self._pending: dict[str, Any] = {}  # from a checkpoint
        self._carried: dict[str, Any] = {}  # from the callback that this is a copy of
        self._updates = 0
        self._begun_anew = False  # whether monitors were reset
        self._rates, self._unfrozen = LearningRate(), Unfrozen()
        self._unstepped, self._computing = Unstepped(), Computing()
        self._failed = False
        self._file = FileCheck()

    # What a user reads ---------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Masks:
        """Bool masks by parameter name, True where a weight lives; empty before the first fit."""
        if self.sparsifier:
            return {name: mask for engine in self.engines for name, mask in engine.masks.items()}
        return all_saved_masks(self._pending or self._carried)

    @property
    def engines(self) -> list[Sparsifier]:
        """The engine, and one for each group of layers that were unfrozen later; empty before the first fit."""
        return [self.sparsifier, *self._unfrozen.engines] if self.sparsifier else []

    def densities(self) -> dict[str, float]:
        """Live share of each sparse layer."""
        return {name: float(mask.float().mean()) for name, mask in self.masks.items()}

    def density(self) -> float:
        """Live share over all sparse layers; a RuntimeError before the first fit."""
        if not (masks := self.masks):
            raise RuntimeError(f"{self.name} has no masks: they are made when fit starts, and stay in spawned workers")
        return sum(int(m.count_nonzero()) for m in masks.values()) / sum(m.numel() for m in masks.values())

    @property
    def plan(self) -> Plan:
        """The table of layers and densities; a RuntimeError before the first fit (see :func:`plan`)."""
        if self.sparsifier is None:
            raise RuntimeError(f"{self.name} has no plan before fit; lightning_sparse.plan(model, density) makes one")
        plan = self.sparsifier.plan
        return replace(plan, layers=tuple(row for engine in self.engines for row in engine.plan.layers))

    # Lightning's hooks ---------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Where checkpoints keep this callback's state; fixed, whatever the hyper-parameters."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work."""
        self._file.begin()
        if stage == "fit":
            refuse_strategy(trainer, "MaskUpdater", shares=True)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make or restore the masks, zero weights, follow the optimizers.

        Not earlier: only now are checkpoint, optimizers and strategy all in place, and a fit that trains nothing has
        not come this far.
        """
        self._failed = False
        self._file.look(trainer)  # a checkpoint whose broken part is the list of callbacks gets here
        rng = self._pending.pop("rng", None)
        if trainer.ckpt_path is None:  # what test(ckpt_path=...) loaded is for the model that it was loaded into
            rng = None
            if not refers(self._loaded, pl_module) or (self.sparsifier and refers(self._model, pl_module)):
                self._pending = {}
        self._prepare(trainer, pl_module)
        assert self.sparsifier is not None
        self._computing.start(self, trainer, pl_module)
        for engine in self.engines:
            for optimizer in trainer.optimizers:
                engine.attach(optimizer)
        self._unfrozen.start(pl_module)
        warn(self.name, self.sparsifier, horizon(trainer)[0])
        warn_of_time(self.name, trainer, self.sparsifier, chosen(self))
        self._unstepped.start(trainer, self.engines)
        if not self.reset_monitors:
            warn_of_dense_best(self.name, trainer, self.sparsifier)
        follow_averages(trainer, *self.engines)
        self._updates = self._moves
        go_on(trainer, rng, self.restore_rng)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Say so when a parameter was replaced by one that no optimizer has."""
        self._unstepped.look(self.name, trainer, self.engines)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Forget what was staged for a step that a gradient scaler skipped; take in layers that were unfrozen."""
        if self.sparsifier:
            self._unfrozen.join(self, trainer, pl_module, self.sparsifier.steps)
            self._computing.look(self, trainer, pl_module, batch_idx)
            for engine in self.engines:
                engine.discard()
                engine.sample()
            self._rates.follow(trainer, self.sparsifier)
            if self.sparsifier.algorithm.rewind_step == self.sparsifier.steps:  # after what listens to validation
                self._rates.save(trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are accumulated, averaged and unscaled, and not yet clipped."""
        for engine in self.engines:
            engine.stage(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moving averages of the model follow when masks have moved."""
        if self.sparsifier and self._moves != self._updates:
            self._updates = self._moves
            self._computing.moved(trainer)
            follow_averages(trainer, *self.engines)
            if self.reset_monitors and not self._begun_anew and all(engine.settled() for engine in self.engines):
                self._begun_anew = True
                reset_monitors(self.name, trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing that validation reads, or swaps for an average, is a sample."""
        for engine in self.engines:
            engine.rest()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """What is done when the fit ends, an export or a report, sees the plain model."""
        self._computing.stop(self, trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the optimizers; masks stay, for a next fit."""
        rng = self._pending.get("rng")  # on_train_start takes it, but is not called if no step is left
        if stage == "fit" and trainer.ckpt_path is not None and trainer.global_step > 0 and rng and self.restore_rng:
            restore_random_states(trainer, rng)
        self._computing.let_go(self, trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go: ``teardown`` is not called after errors."""
        self._failed, self._pending = True, {}
        self._file.explain(trainer, exception)
        self._computing.let_go(self, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Masks, counters, the algorithm's state and the random states."""
        if self.sparsifier is None:
            return self._pending or self._carried
        run = {"begun_anew": self._begun_anew, "rewinds": self._rates.rewinds, "rates": self._rates.saved}
        rng = gather_random_states(alone=self._failed)
        return {**self.sparsifier.state_dict(), **self._unfrozen.state_dict(), "run": run, "rng": rng}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """``test(ckpt_path=...)`` after a fit has put other weights into the model: their masks come with them."""
        self._file.look(trainer)
        self._loaded = weakref.ref(pl_module)
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        self._pending = self._pending if state else {}  # what another checkpoint held, validated before
        if trainer.state.fn != "fit" and state and self.sparsifier and refers(self._model, pl_module):
            self.sparsifier.adopt(state)
            self._unfrozen.adopt(state.get("later", ()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until a fit starts: there is nothing to apply it to yet."""
        self._pending = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy without the model: masks travel as saved state."""
        masks = {**self.sparsifier.state_dict(), **self._unfrozen.state_dict()} if self.sparsifier else self._carried
        gone = {"sparsifier": None, "_model": None, "_loaded": None, "_unfrozen": Unfrozen(), "_computing": Computing()}
        return {**without_model(self), **gone, "_carried": masks}

    # How -----------------------------------------------------------------------------------------------------------

    @property
    def _moves(self) -> int:
        return sum(engine.updates for engine in self.engines)

    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        """An engine for this model and this run: from a checkpoint, from the fit before, or new."""
        new = self.sparsifier is None or not refers(self._model, pl_module) or bool(self._pending)
        run = self._pending.get("run", {})
        if new or trainer.global_step == 0:
            self._rates.load(run.get("rates", {}))
        if self.sparsifier is None or new:
            state = self._pending or self._carried
            self.sparsifier = build(self, trainer, pl_module, state)
            self._unfrozen.restore(self, trainer, pl_module, state.get("later", ()))
            self._model = weakref.ref(pl_module)
        else:  # another run with the masks of the last one; a Trainer that goes on counts on
            algorithm = chosen(self).planned(*horizon(trainer))
            self.sparsifier.restart(algorithm, 0 if trainer.global_step == 0 else self.sparsifier.steps)
            self._unfrozen.restart(self, trainer)
        if new or trainer.global_step == 0:  # where nothing falls any more there is nothing to forget either
            fell = all(engine.settled() for engine in self.engines)
            self._begun_anew = run.get("begun_anew", False) or (not run and fell)
        self._rates.rewinds = run.get("rewinds", self.sparsifier.rewinds)
        self._pending, self._carried = {}, {}
