"""What tests of penalties share: a small network in plain PyTorch, runs whose weights move by a penalty alone."""

from dataclasses import dataclass

import torch
from helpers import LIVE, Net, loader, net, trainer, weights
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_sparse.penalties import Penalty

LAYERS = ["0.weight", "3.weight", "6.weight"]  # of network()
NAMES = list(LIVE)  # of helpers.net()


@dataclass(frozen=True)
class Fourth(Penalty):
    """A user's own, with nothing but its value."""

    def value(self, weight):
        return weight.pow(4).sum()


def network() -> nn.Sequential:
    torch.manual_seed(2)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(108, 5)).double()


BATCH = torch.randn(8, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def loss_of(model, batch=BATCH):
    return model(batch).square().mean()


def stepped(model, optimizer, extra=None):
    """One step; ``extra`` is what a user would add to the loss by hand."""
    optimizer.zero_grad()
    (loss_of(model) + (extra(model) if extra else 0)).backward()
    optimizer.step()


def equal(left, right, **tolerance):
    assert left.state_dict().keys() == right.state_dict().keys()
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def fitted(callbacks, model=None, data=None, **settings):
    """A model after one epoch, and its Trainer."""
    model = net() if model is None else model
    fit = trainer(callbacks, **{"max_epochs": 1, **settings})
    fit.fit(model, loader() if data is None else data)
    return model, fit


def close(left, right, **tolerance):
    for name, value in weights(left).items():
        torch.testing.assert_close(value, weights(right)[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance)


class Idle(Net):
    """A loss without a gradient: weights move by the penalty alone, under SGD with lr 0.1."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=self.optimizer == "fused")


def idle(optimizer="sgd"):
    model = Idle(optimizer)
    model.load_state_dict(net().state_dict())
    return model


def moved(model, strength, steps, on=tuple(NAMES)):
    """Every weight of ``on`` has moved by ``strength`` at lr 0.1 in each of ``steps``, nothing else has."""
    start = weights(net())
    for name, value in weights(model).items():
        far = start[name].abs() > 2 * 0.1 * strength * steps  # the others went through zero
        left = 0.1 * strength * steps * start[name].sign() if name in on else torch.zeros_like(value)
        torch.testing.assert_close((start[name] - value)[far], left[far], rtol=1e-4, atol=1e-7)


def scaled(**settings):
    """float16 with a scale that overflows at first, and again whenever five good steps have passed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_factor=2.0**24, backoff_factor=2.0**-24, **settings)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
