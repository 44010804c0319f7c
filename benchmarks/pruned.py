"""Short trainings with Lightning's ModelPruning, and the networks for them. For reliability.py."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watched import Net


def pruning(name: str = "l1_unstructured", **settings: Any) -> ModelPruning:
    """Once, at the end of the first epoch."""
    how = {"amount": 0.9, "parameter_names": ["weight"], "apply_pruning": lambda epoch: epoch == 0}
    return ModelPruning(name, **{**how, "use_lottery_ticket_hypothesis": False, **settings})


def data(batch: int = 4) -> DataLoader[Any]:
    """Forty samples of noise."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 20, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch)


def net(kind: Callable[[], Net] = Net, seed: int = 0) -> Net:
    """Its weights depend on ``seed`` alone."""
    torch.manual_seed(seed)
    return kind()


def train(
    callbacks: Sequence[Callback], model: Net | None = None, *, batch: int = 4, start: Any = None, **how: Any
) -> Net:
    """Three epochs of ten steps, or what ``how`` says."""
    model = net() if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            **{
                "max_epochs": 3,
                "callbacks": list(callbacks),
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **how,
            }
        )
        trainer.fit(model, data(batch), ckpt_path=start)
    return model


class Mixing(torch.optim.SGD):
    """Writes to entries whose gradient is 0, as Muon and Shampoo do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(weight.abs().mean(), alpha=-0.01)
        return loss


class Tied(Net):
    """Two layers share a weight of 30 x 30."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30), nn.Linear(30, 5))
        self.net[3].weight = self.net[1].weight


class Late(Net):
    """Layers are made in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential()

    def configure_model(self) -> None:
        if not len(self.net):
            self.net.extend(Net().net)


class Skipping(Net):
    """Every third batch has no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)


class Raw(Net):
    """Steps behind Lightning's back."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Breaks(Callback):
    """In the third epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            raise ZeroDivisionError
