"""Channels out of a model while it is trained, as one callback."""

import weakref
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparse.callbacks.base import Callback, rank_zero_info, refers, without_model
from lightning_sparse.callbacks.channels.arguments import problems
from lightning_sparse.callbacks.channels.event import finish, go
from lightning_sparse.callbacks.channels.following import Following
from lightning_sparse.callbacks.channels.history import History
from lightning_sparse.callbacks.channels.penalty import ChannelPenalty, PenaltyKind
from lightning_sparse.callbacks.channels.schedule import Moments, moments
from lightning_sparse.callbacks.channels.start import before_fit, begin
from lightning_sparse.callbacks.channels.state import saved, take
from lightning_sparse.callbacks.channels.surgery import unwrapped
from lightning_sparse.callbacks.channels.watch import GraphWatch
from lightning_sparse.callbacks.channels.workers import send_back, take_back
from lightning_sparse.callbacks.monitors import reset_monitors
from lightning_sparse.callbacks.regularizer import logs
from lightning_sparse.callbacks.run import gather_random_states
from lightning_sparse.callbacks.torn import FileCheck
from lightning_sparse.channels.criterion import Criterion
from lightning_sparse.channels.hold import ChannelHold
from lightning_sparse.channels.options import Scope, Target
from lightning_sparse.channels.recipe import Recipe
from lightning_sparse.channels.restore import follow_shapes
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.schedules import Schedule

CriterionName = Literal["gamma", "bn_var", "bn_std", "l1", "l2", "activation", "taylor", "sensitivity", "random"]


class BNChannelPruner(Callback):
    """Takes channels physically out of any LightningModule while it trains: epochs become faster, the model smaller.

    Which tensors share channels is found out in a training step that happens anyway; what is not understood stays, and
    the report says why. Parameters stay the same objects: optimizer, schedulers, scaler and hooks go on, the
    optimizer's state loses the same channels. Checkpoints hold the smaller model; where this callback is in the
    Trainer they load into the module as it was written, to resume or to test, and ``load_from_checkpoint`` of this
    package loads them elsewhere. A run that is resumed goes on bit for bit.

    Args:
        keep: share that stays in the end, of what ``target`` says, in (0, 1]; several moments go down in equal factors.
        criterion: how much a channel matters: "gamma" (network slimming), "bn_std" (recommended), "bn_var", "l1", "l2",
            "activation", "taylor", "sensitivity", "random", or an object such as ``Gamma(combine="mean")``.
        scope: "global": all channels compete; "layer": each axis keeps the same share.
        target: "channels", "flops", "params", or "latency" (measured on this device).
        threshold: instead of ``keep``: what scores above it stays.
        at: when: epochs that have ended, shares of the run (below 1; at the end of an epoch), or a list of these. None:
            once, at half of the run.
        every: instead: after so many epochs, and again, as long as another epoch follows.
        at_steps: instead: after these optimizer steps, also within an epoch.
        l1: strength of the penalty, a Schedule of it over the run, or "auto": such that the penalty is ``ratio`` of the
            whole loss at the first step.
        penalty: what pulls channels to zero until the last moment: "subgradient" (L1 on the weights of BatchNorm, as
            published), "proximal" (the same with exact zeros), "group_lasso" (on channels of weights), or None.
        ratio: see ``l1``.
        gamma_init: what the weights of BatchNorm start from in a new run; None leaves them.
        decay_gammas: whether the optimizer's weight decay acts on the weights of BatchNorm.
        round_to: counts are multiples of it; None takes what this device computes in, but an eighth of an axis at most.
        min_channels: at least so many stay on each axis.
        cap: no axis loses more than this share at one moment.
        exclude: globs over parameter or module names, whose output channels stay.
        compensate: whether what removed channels gave on average is added to the layers that read them.
        shrink: "live": channels leave at each moment; "end": they are zeros until the fit ends; "never": for good.
        batches: of the training data that are looked at, where a criterion or ``compensate`` needs some.
        seed: of their order; the global random state is never touched.
        reset_monitors: whether ModelCheckpoint and EarlyStopping begin anew after the last moment.
        restore_rng: whether a resumed run also gets back the random states of torch, CUDA, numpy and Python.
        name: of the callback in checkpoints and logs.

    Raises:
        ValueError: on arguments that cannot be right, all at once.

    Example:
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        ...     def training_step(self, batch, batch_idx):
        ...         return self.net(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> import torch
        >>> data, model = torch.utils.data.DataLoader(torch.randn(32, 8), batch_size=8), Net()
        >>> trainer = Trainer(max_epochs=2, callbacks=[BNChannelPruner(0.5)], logger=False, enable_progress_bar=False,
        ...     enable_checkpointing=False, enable_model_summary=False)
        >>> trainer.fit(model, data)
        >>> model.net[0]
        Linear(in_features=8, out_features=8, bias=True)
    """

    def __init__(
        self,
        keep: float = 0.5,
        *,
        criterion: CriterionName | Criterion = "gamma",
        scope: Scope = "global",
        target: Target = "channels",
        threshold: float | None = None,
        at: int | float | list[int | float] | None = None,
        every: int | None = None,
        at_steps: list[int] | None = None,
        l1: float | Schedule | Literal["auto"] = 1e-4,
        penalty: PenaltyKind | None = "subgradient",
        ratio: float = 0.2,
        gamma_init: float | None = None,
        decay_gammas: bool = True,
        round_to: int | None = None,
        min_channels: int = 1,
        cap: float | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        compensate: bool = True,
        shrink: Literal["live", "end", "never"] = "live",
        batches: int = 8,
        seed: int = 0,
        reset_monitors: bool = False,
        restore_rng: bool = True,
        name: str = "BNChannelPruner",
    ) -> None:
        self.keep, self.criterion, self.scope, self.target = keep, criterion, scope, target
        self.threshold, self.at, self.every, self.at_steps = threshold, at, every, at_steps
        self.l1, self.penalty, self.ratio = l1, penalty, ratio
        self.gamma_init, self.decay_gammas = gamma_init, decay_gammas
        self.round_to, self.min_channels, self.cap, self.exclude = round_to, min_channels, cap, exclude
        self.compensate, self.shrink, self.batches, self.seed = compensate, shrink, batches, seed
        self.reset_monitors, self.restore_rng, self.name = reset_monitors, restore_rng, name
        raise_problems(problems(self), "BNChannelPruner")
        self.done = 0  # moments
        self.steps = 0  # that are over; Lightning counts the last one of a run that goes on when its epoch begins
        self.first: dict[str, float] = {}  # what there was before the first of them
        self.counts: dict[str, int] = {}  # channels that are left of each axis that there was then
        self.held: dict[str, Tensor] = {}  # channels that are left, of those that are still there as zeros
        self.recipe, self.history = Recipe(), History()
        self.moments: Moments | None = None
        self.pull, self.watch = ChannelPenalty(penalty, l1, ratio, exclude, name), GraphWatch()
        self.hold: ChannelHold | None = None
        self.model: weakref.ref[Any] | None = None
        self.pending: dict[str, Any] = {}  # from a checkpoint
        self.loaded: weakref.ref[Any] | None = None  # what its weights went into
        self._handles: list[RemovableHandle] = []
        self.running = self.begin_anew = self._behind = self._failed = False
        self._file = FileCheck()

    # What a user reads ---------------------------------------------------------------------------------------------

    def channels(self) -> dict[str, tuple[int, int]]:
        """Of each axis that has lost some: how many channels are left, and how many there were."""
        return self.history.channels()

    def attach(self, module: nn.Module) -> None:
        """Let a module take the shapes of whatever is loaded into it, also outside of a fit.

        Needed before a fit in processes that are spawned or forked (``strategy="ddp_spawn"``, notebooks), which is
        refused without: smaller weights come back into a module of this process that nothing has cut. What was cut
        comes back with them.
        """
        follow_shapes(module, take_back(self))

    # Lightning's hooks ---------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Where checkpoints keep this callback's state; fixed, whatever the hyper-parameters."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work; let the model take the shapes of what is loaded."""
        self._file.begin()
        self._close()
        if stage == "fit":
            before_fit(self, trainer, pl_module)
        self._handles = Following(self, trainer).attach(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take up what a checkpoint says; follow the optimizers."""
        self._failed = False
        self._file.look(trainer)
        self.moments = moments(self.at, self.every, self.at_steps, trainer, self.threshold is not None)
        begin(self, trainer, pl_module)
        self.running, self._behind = True, trainer.ckpt_path is not None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """What was due when the last epoch ended and did not come to be done: a run was resumed between."""
        if self.begin_anew:
            self.begin_anew = False
            reset_monitors(self.name, trainer, "the last channels are cut")
        self._behind = False
        self._go(trainer, pl_module, trainer.current_epoch)
        self.history.epoch_begins()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch this step, where the channels are not known yet and some are still to go."""
        if self._behind:  # Lightning leaves out on_train_epoch_start after the last step of an epoch was saved
            self._behind = False
            self._go(trainer, pl_module, trainer.current_epoch)
        self.pull.discard()
        if self.moments and not self.moments.over(self.done):
            self.watch.step_begins(trainer, pl_module)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The forward pass is over: refuse what is impossible, and learn what the penalty needs."""
        self.watch.before_backward(self, trainer, pl_module, loss)
        self.pull.learn(trainer, pl_module, self.watch.found, loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Under manual optimization the model may run again."""
        self.watch.after_backward()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are accumulated, averaged and unscaled, and not yet clipped."""
        self.pull.add(trainer, pl_module, optimizer)
        if self.hold:
            self.hold.mask(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Try what was found in this step; cut, where that was asked for after a step."""
        self.watch.step_ends(self, trainer, pl_module, batch)
        self.pull.learn(trainer, pl_module, self.watch.graph, None)
        if not trainer.fit_loop._should_accumulate():
            self.steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # Lightning counts this step later
            if self.moments and self.moments.between:
                self._go(trainer, pl_module, trainer.current_epoch)
        if self.pull.engines and logs(trainer):
            pl_module.log(f"{self.name}/penalty", self.pull.value(), batch_size=1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Cut, before ModelCheckpoint saves."""
        if text := self.history.epoch_ends():
            rank_zero_info(f"{self.name}: {text}")
        self._go(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """What was zeros until now leaves, if it is to."""
        if self.shrink == "end" and self.held:
            with unwrapped(trainer):
                finish(self, trainer, pl_module)
        self.running = False

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of model and optimizers."""
        self._close()
        if stage == "fit":
            send_back(self, trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go: ``teardown`` is not called after errors."""
        self._failed, self.pending = True, {}
        self._file.explain(trainer, exception)
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """What was cut, how far the schedule is, and the random states."""
        if self.pending:
            return self.pending
        return {**saved(self), "rng": gather_random_states(alone=self._failed)}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What ``test(ckpt_path=...)`` has loaded may have more channels, or fewer, than the model had."""
        self._file.look(trainer)
        self.loaded = weakref.ref(pl_module)
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if trainer.state.fn != "fit" and refers(self.model, pl_module):
            take(self, state or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until a fit starts."""
        self.pending = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy without the model."""
        gone = dict.fromkeys(("model", "loaded", "hold"))
        return {**without_model(self), **gone, "watch": GraphWatch(), "_handles": []}

    # How -----------------------------------------------------------------------------------------------------------

    def _go(self, trainer: Any, pl_module: Any, epochs: int) -> None:
        now = (epochs, max(self.steps, trainer.fit_loop.epoch_loop._batches_that_stepped))
        reached = self.moments.reached(*now) if self.moments else 0
        if reached <= self.done:
            return
        with unwrapped(trainer):
            done = go(self, trainer, pl_module, reached, now)
        if done and self.moments and self.moments.over(self.done):
            self.pull.stop()
            self.begin_anew = self.reset_monitors

    def _close(self) -> None:
        self.pull.close()
        if self.hold:
            self.hold.detach()
        self.watch.close()
        self.hold, self.running = None, False
        while self._handles:
            self._handles.pop().remove()
