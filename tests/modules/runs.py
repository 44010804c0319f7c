"""The runs of a case: one without a break, and one that goes on from a checkpoint of the first."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from helpers import dead_state, digest, saver, state_tensors, weights
from lightning.pytorch import Callback
from modules.cases import Case
from torch import Tensor, nn

from lightning_sparse import ConstantSchedule, MaskUpdater, RigL

DENSITY, EVERY = 0.2, 3


class Watch(Callback):
    """Looks from outside: what every forward pass saw, and what every step left.

    Attributes:
        seen: how many forward passes looked at each masked weight: of its modules, or of the ones around them.
        used: the masked weights that got a gradient. SCVI has an encoder that it does not use by default.
        leaks: dead weights that were not zero then, all passes together.
        state_leaks: entries of optimizer state of dead weights that were not zero after a step, all steps together.
        counts: live weights by name after every batch.
        masks: a digest of the masks after every batch.
    """

    def __init__(self, updater: MaskUpdater) -> None:
        self.updater = updater
        self.seen: dict[str, int] = {}
        self.used: set[str] = set()
        self.leaks = self.state_leaks = 0
        self.counts: list[dict[str, int]] = []
        self.masks: list[str] = []
        self._handles: list[Any] = []

    def on_train_start(self, trainer, pl_module):
        self.seen = dict.fromkeys(self.updater.masks, 0)
        for name in self.seen:
            weight = pl_module.get_parameter(name)
            for path, module in pl_module.named_modules():
                if any(weight is own for own in module._parameters.values()):
                    around = pl_module.get_submodule(path.rpartition(".")[0])  # attention uses its projection's weight
                    for each in {module, around}:
                        self._handles.append(each.register_forward_pre_hook(self._look(name, weight)))

    def _look(self, name, weight):
        def hook(module, args):
            self.seen[name] += 1
            self.leaks += int((weight.detach()[~self.updater.masks[name]] != 0).count_nonzero())

        return hook

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        masks = self.updater.masks
        self.counts.append({name: int(mask.sum()) for name, mask in masks.items()})
        self.masks.append(digest(masks))
        self.used |= {name for name in masks if pl_module.get_parameter(name).grad is not None}
        self.state_leaks += sum(dead_state(o, pl_module, masks) for o in trainer.optimizers)

    def teardown(self, trainer, pl_module, stage):
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class Run:
    """What is left of a fit."""

    updater: MaskUpdater
    watch: Watch
    made: Any
    trained: nn.Module
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    state: dict[str, Tensor]


def train(case: Case, folder: Path, *, seed: int, start: Path | None = None) -> Run:
    """Three epochs of six steps, with an update after every third step."""
    torch.manual_seed(seed)
    subject = case.subject()
    made = subject.make()
    include = None if case.include is None else list(case.include)
    updater = MaskUpdater(RigL(every=EVERY, stop=1.0, fraction=ConstantSchedule(0.3)), DENSITY, include=include)
    watch = Watch(updater)
    loading = {} if case.plain else {"weights_only": False}
    fit = subject.train(made, [updater, watch, saver(folder, case.resume)], start, **loading)
    trained = fit.lightning_module
    states = [state_tensors(optimizer) for optimizer in fit.optimizers]
    state = {f"{i}/{key}": value.clone() for i, rows in enumerate(states) for key, value in rows.items()}
    return Run(updater, watch, made, trained, weights(trained), updater.masks, state)


@dataclass(frozen=True)
class Runs:
    """Both runs, each made when it is first asked for."""

    case: Case
    folder: Path

    @cached_property
    def whole(self) -> Run:
        """Without a break."""
        return train(self.case, self.folder / "whole", seed=1)

    @property
    def checkpoint(self) -> Path:
        """Of the run without a break, from its middle."""
        assert self.whole
        return self.folder / "whole" / f"step={self.case.resume}.ckpt"

    @cached_property
    def again(self) -> Run:
        """From the checkpoint on, in a model with other first weights."""
        return train(self.case, self.folder / "again", seed=9, start=self.checkpoint)
