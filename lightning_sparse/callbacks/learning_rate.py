"""The learning rate of an early step, kept to go back to."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_sparse.core.sparsifier import Sparsifier


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rate and what schedulers move with it, such as momentum."""
    kept = {key: value for key, value in group.items() if key != "params"}
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in kept.items()}


class LearningRate:
    """The states of a Trainer's schedulers and the rates of its optimizers, saved once and set back.

    Attributes:
        saved: empty until :meth:`save`; tensors, numbers and plain containers, for a checkpoint.
        rewinds: of the engine that were followed.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}
        self.rewinds = 0

    def save(self, trainer: Any) -> None:
        """Keep what they are now."""
        self.saved = {
            "schedulers": [dict(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            "rates": [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        }

    def restore(self, trainer: Any) -> None:
        """Go back to what was saved."""
        for config, state in zip(trainer.lr_scheduler_configs, self.saved["schedulers"], strict=True):
            config.scheduler.load_state_dict(dict(state))
        for optimizer, rates in zip(trainer.optimizers, self.saved["rates"], strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group.update(rate)

    def follow(self, trainer: Any, sparsifier: Sparsifier) -> None:
        """Before a batch, when the schedulers have taken their step for the last one: go back if weights did."""
        if self.rewinds != sparsifier.rewinds:
            self.rewinds = sparsifier.rewinds
            if getattr(sparsifier.algorithm, "rewind_schedule", False):
                self.restore(trainer)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self.saved = dict(saved)
