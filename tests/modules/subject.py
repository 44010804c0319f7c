"""A model that somebody else wrote, as the runs see it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers import trainer
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchdata.stateful_dataloader import StatefulDataLoader

EPOCHS, STEPS = 3, 6  # and steps an epoch


@dataclass(frozen=True)
class Subject:
    """How to make a model, train it and ask it something.

    Attributes:
        make: the object of the package, from the global random state.
        data: its training data: ``STEPS`` batches an epoch.
        answers: what a model, as ``module`` returns it, says to fixed inputs in evaluation mode.
        module: the LightningModule of the object.
        fit: trains an object for ``EPOCHS`` epochs, and returns the Trainer.
    """

    make: Callable[[], Any]
    data: Callable[[], Any]
    answers: Callable[[Any], Tensor]
    module: Callable[[Any], LightningModule] = lambda made: made
    fit: Callable[..., Any] | None = None

    def train(self, made: Any, callbacks: list[Any], start: Any, **settings: Any) -> Any:
        """A fit, from the checkpoint ``start`` where there is one."""
        if self.fit is not None:
            return self.fit(made, callbacks, start)
        fit = trainer(callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
        fit.fit(made, self.data(), ckpt_path=start, **settings)
        return fit


class Wrapped(LightningModule):
    """A plain module in a LightningModule; ``loss`` takes the module and a batch."""

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def shuffled(dataset: Any) -> StatefulDataLoader:
    """Batches for one epoch, from a loader that goes on in the middle of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*set_vital.*")  # torchdata 0.11 under torch 2.13
        return StatefulDataLoader(dataset, batch_size=len(dataset) // STEPS, shuffle=True)


def numbers(seed: int = 7) -> torch.Generator:
    """The source of all made-up data."""
    return torch.Generator().manual_seed(seed)
