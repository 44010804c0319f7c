"""Learning rates are kept or go back with the weights, as asked; rates before each batch, four steps an epoch."""

import pytest
import torch
from helpers import loader, trainer
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

from lightning_sparse import GlobalMagnitude, MaskUpdater


class Scheduled(LightningModule):
    def __init__(self, schedule, interval, losses):
        super().__init__()
        self.net, self.schedule, self.losses = nn.Sequential(nn.Flatten(), nn.Linear(72, 5)), schedule, losses
        self.config = {"interval": interval, **({"monitor": "val_loss"} if losses else {})}

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.losses[self.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.8, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), **self.config}}


class Groups(Callback):
    def __init__(self):
        self.rates, self.momenta = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        group = trainer.optimizers[0].param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["momentum"])


def groups(schedule, interval="step", epochs=3, losses=(), accumulate=1, **tickets):
    """Of a run that prunes at the steps 4 and 8, or as told."""
    found, algorithm = Groups(), GlobalMagnitude(**{"rounds": 2, "stop": 8, **tickets})
    fit = trainer([MaskUpdater(algorithm, 0.25), found], max_epochs=epochs, accumulate_grad_batches=accumulate)
    model = Scheduled(schedule, interval, losses)
    fit.fit(model, loader(4, 16 * accumulate), loader(4, 4) if losses else None)
    return found


def decay(optimizer):
    return schedulers.StepLR(optimizer, 1, 0.5)


def cycle(optimizer):
    return schedulers.OneCycleLR(optimizer, 0.8, total_steps=20)


def warm(optimizer):
    parts = schedulers.LinearLR(optimizer, 0.1, 1, 3), schedulers.CosineAnnealingLR(optimizer, 12)
    return schedulers.SequentialLR(optimizer, parts, [3])


BY_STEP = pytest.mark.parametrize("schedule", [decay, cycle, warm])


@BY_STEP
def test_a_schedule_goes_on_where_weights_go_back(schedule):
    plain = groups(schedule)
    for rewind in ("init", 2):
        assert groups(schedule, rewind=rewind).rates == plain.rates


@BY_STEP
@pytest.mark.parametrize(("rewind", "step"), [("init", 0), (2, 2)])
def test_a_schedule_by_steps_goes_back_with_the_weights(schedule, rewind, step):
    plain = groups(schedule).rates
    expected = plain[:4] + plain[step : step + 4] * 2
    assert len(set(plain[: step + 4])) == step + 4
    assert groups(schedule, rewind=rewind, rewind_schedule=True).rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("rewind", "step"), [("init", 0), (2, 2)])
def test_a_momentum_that_is_scheduled_goes_back_too(rewind, step):
    plain = groups(cycle).momenta
    assert groups(cycle, rewind=rewind, rewind_schedule=True).momenta == plain[:4] + plain[step : step + 4] * 2


@pytest.mark.parametrize(
    ("tickets", "expected"),
    [
        ({}, [0.8, 0.4, 0.2, 0.1]),
        ({"rewind": "init", "rewind_schedule": True}, [0.8, 0.8, 0.8, 0.4]),
        ({"rewind": 2, "rewind_schedule": True}, [0.8, 0.8, 0.8, 0.4]),  # 2 is in the first epoch
        ({"rewind": 4, "rounds": 1, "rewind_schedule": True}, [0.8, 0.4, 0.4, 0.2]),  # 4 ends the first
    ],
)
def test_a_schedule_by_epochs_goes_back_to_the_rate_of_the_early_step(tickets, expected):
    found = groups(decay, "epoch", epochs=4, **tickets).rates
    assert found == [rate for rate in expected for _ in range(4)]


def test_a_pruning_inside_an_epoch_changes_the_rate_of_its_rest():
    found = groups(decay, "epoch", epochs=4, rounds=1, stop=6, rewind="init", rewind_schedule=True).rates
    assert found == [0.8] * 4 + [0.4] * 2 + [0.8] * 2 + [0.4] * 4 + [0.2] * 4


def test_steps_are_counted_not_batches():
    found = groups(decay, epochs=3, accumulate=2, rewind=1, rewind_schedule=True).rates
    twice = [0.8, 0.4, 0.2, 0.1] + [0.4, 0.2, 0.1, 0.05] * 2
    assert found == [rate for rate in twice for _ in range(2)]


def plateau(optimizer):
    """Halves the rate after every epoch that is not better than the best."""
    return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


@pytest.mark.parametrize(
    ("tickets", "expected"),
    [
        ({}, [0.8, 0.8, 0.4, 0.2]),
        ({"rewind": "init"}, [0.8, 0.8, 0.4, 0.2]),
        # at 4 and 8, the ends of epochs: what validation said of them is forgotten too
        ({"rewind": "init", "rewind_schedule": True}, [0.8, 0.8, 0.8, 0.8]),
        # at 8 back to the end of the first epoch, when 1.0 was the best; then 3.0 and 4.0 are worse
        ({"rewind": 4, "rounds": 1, "rewind_schedule": True}, [0.8, 0.8, 0.8, 0.4]),
    ],
)
def test_a_schedule_that_listens_to_validation_is_kept_or_goes_back(tickets, expected):
    found = groups(plateau, "epoch", epochs=4, losses=(1.0, 2.0, 3.0, 4.0), **tickets).rates
    assert found == [rate for rate in expected for _ in range(4)]
