"""One short fit with masks that move, watched from outside."""

from typing import Any, NamedTuple

import torch
from helpers import DENSITY, Recorder, loader, net, trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_sparse import SET, Algorithm, MaskUpdater, RigL

MOVING = RigL(every=2, stop=1.0)  # five updates in an epoch of twelve steps: none after the last one
RANDOM = SET(every=2, stop=1.0)


class Run(NamedTuple):
    """What is left of a fit."""

    updater: MaskUpdater
    recorder: Recorder
    model: LightningModule
    trainer: Trainer


def run(
    algorithm: Algorithm = MOVING,
    optimizer: str = "sgd",
    *others: Callback,
    model: LightningModule | None = None,
    data: Any = None,
    start: Any = None,
    masks: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Twelve steps on a small classifier of 2,128 weights, a quarter of them live; ``others`` come before the masks."""
    updater = MaskUpdater(algorithm, **{"density": DENSITY, **(masks or {})})
    recorder = Recorder(updater)
    model = net(optimizer) if model is None else model
    fit = trainer([*others, updater, recorder], **{"max_epochs": 1, **settings})
    fit.fit(model, loader() if data is None else data, ckpt_path=start)
    return Run(updater, recorder, model, fit)


def leaks(model: torch.nn.Module, masks: dict[str, Tensor]) -> int:
    """Dead weights that are not zero now."""
    state = model.state_dict()
    return sum(int((~(state[name][~mask] == 0)).sum()) for name, mask in masks.items())


def hooks(optimizer: torch.optim.Optimizer) -> int:
    """Torch's step hooks on an optimizer."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
