"""The graph of a LightningModule's channels, from a training step that happens anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparse.callbacks.base import rank_zero_info
from lightning_sparse.callbacks.data import TrainerBatches, TrainerLoss, step_arguments
from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.calls import Replay
from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.quiet import uncompiled
from lightning_sparse.channels.trace import Tracer, analyse
from lightning_sparse.core.flops import batch_size
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.probe import untouched_randomness


class StepTrace:
    """Watches one training step of a LightningModule, from its first line to its last.

    The step runs as it would without; what wraps the model (DDP) is not seen. Under manual optimization the watch
    pauses in backward passes and optimizer steps.

    Args:
        pl_module: about to take the step.
        optimizers: that it may step by itself.

    Attributes:
        graph: what was found; None until the step is over. Not yet probed.
    """

    def __init__(self, pl_module: Any, optimizers: list[Any]) -> None:
        self.graph: Graph | None = None
        self._module, self._tracer = pl_module, Tracer(pl_module)
        self._buffers = {name: buffer.detach().clone() for name, buffer in pl_module.named_buffers()}
        self._before = vars(pl_module).get("training_step")
        self._inside = False
        self._handles: list[RemovableHandle] = []
        if not pl_module.automatic_optimization:
            for optimizer in map(unwrap, optimizers):
                self._handles.append(optimizer.register_step_pre_hook(lambda *_: self.pause()))
                self._handles.append(optimizer.register_step_post_hook(lambda *_: self.resume()))
        step = pl_module.training_step

        @wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:  # Lightning's own arguments
            self._inside = True
            self.resume()
            try:
                output = step(*args, **kwargs)
            finally:
                self.remove()
            self._tracer.finish(output)
            self.graph = self._tracer.graph()
            return output

        pl_module.training_step = watched

    def pause(self, output: Any = None) -> None:
        """What comes is no part of the model's forward pass; ``output`` is a loss that has come out of it."""
        if self._inside:
            self._tracer.close()
            self._tracer.finish(output)

    def resume(self) -> None:
        """The forward pass goes on."""
        if self._inside:
            self._tracer.open()

    def remove(self) -> None:
        """Watch no more; the module's own step is back."""
        self._tracer.close()
        self._inside = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        vars(self._module).pop("training_step", None)
        if self._before is not None:
            vars(self._module)["training_step"] = self._before

    def undo(self) -> None:
        """Buffers (running statistics) as they were before the step."""
        named = dict(self._module.named_buffers())
        with torch.no_grad():
            for name, value in self._buffers.items():
                named[name].copy_(value)

    def probed(self, trainer: Any, batch: Any) -> Graph:
        """What the model really runs without: tried, and undone. Call it outside of the step."""
        assert self.graph is not None, "the step is over"
        replay = self._tracer.replay()
        quiet_calls = [replace(call, module=_Nothing()) if _is_metric(call.module) else call for call in replay.calls]
        found = probe(self._module, self.graph, Replay(quiet_calls))
        if len(found.atoms) < len(self.graph.atoms):
            with quiet(trainer, self._module):  # functions between the layers may have been the reason
                again = probe(self._module, self.graph, lambda: quiet_step(trainer, self._module, batch))
            found = max(found, again, key=lambda graph: sum(atom.channels for atom in graph.atoms))
        return found


def graph_without_step(name: str, trainer: Any, pl_module: Any, seed: int) -> tuple[Graph, int] | None:
    """The graph, and the samples it is of, where no training step has been seen: a run goes on from an epoch's end.

    One batch of the training data goes through the model in evaluation mode; nothing is logged or stepped. None where
    that is impossible.
    """
    with quiet(trainer, pl_module):
        (batch,) = samples(trainer, seed, 1)

        def run() -> Any:
            return quiet_step(trainer, pl_module, batch)

        try:
            return probe(pl_module, analyse(pl_module, run), run), batch_size(batch) or 1
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            rank_zero_info(f"{name}: could not run the model between two epochs ({error}); the next step tells")
            return None


def samples(trainer: Any, seed: int, count: int) -> list[Any]:
    """The first batches of a copy of the loader, the same at every call."""
    with untouched_randomness():
        torch.manual_seed(seed)  # of augmentations
        return list(islice(TrainerBatches(trainer, seed), count))


def quiet_step(trainer: Any, pl_module: Any, batch: Any) -> Any:
    """What ``training_step`` returns for a batch; call it under :func:`quiet`, where nothing is logged or stepped."""
    with trainer.precision_plugin.train_step_context():
        return pl_module.training_step(*step_arguments(pl_module, batch))


def forward_run(pl_module: Any, inputs: Any) -> Callable[[], Any]:
    """``forward`` on inputs as they come from :func:`example_inputs`."""
    if isinstance(inputs, dict):
        return lambda: pl_module(**inputs)
    return lambda: pl_module(*inputs) if isinstance(inputs, tuple) else pl_module(inputs)


@contextmanager
def quiet(trainer: Any, pl_module: nn.Module) -> Iterator[None]:
    """Inside, the model's own ``log`` does nothing, its metrics do not count, and it cannot step its optimizers.

    Compiled code runs as it was written.
    """
    names = ("_trainer", "log", "log_dict", "forward", *_STEPPING, "optimizers")
    touched = [module for module in pl_module.modules() if hasattr(module, "_trainer") or _is_metric(module)]
    before = [(module, {n: vars(module)[n] for n in names if n in vars(module)}) for module in touched]
    TrainerLoss(trainer).prepare_copy(pl_module)
    mutes = [_Mute() for _ in trainer.optimizers]
    for module in touched:
        if _is_metric(module):
            object.__setattr__(module, "forward", _zero)
        elif not getattr(module, "automatic_optimization", True):
            object.__setattr__(module, "optimizers", lambda *_, **__: mutes if len(mutes) > 1 else mutes[0])
            for name in _STEPPING:
                object.__setattr__(module, name, _Mute())
    try:
        with uncompiled():
            yield
    finally:
        for module, values in before:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(values)


_STEPPING = ("manual_backward", "lr_schedulers", "clip_gradients", "toggle_optimizer", "untoggle_optimizer")


class _Mute:
    """In the place of optimizers and schedulers: takes every call, and does nothing."""

    param_groups: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> "_Mute":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "_Mute":
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> "_Mute":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


def _is_metric(module: nn.Module) -> bool:
    """Of torchmetrics, by what it can do: calling it counts."""
    return all(hasattr(module, name) for name in ("update", "compute", "reset", "_computed"))


def _zero(*args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros(())


class _Nothing(nn.Module):
    """In the place of a metric."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""
