"""Models and data for reports: small enough to count by hand."""

import torch
from helpers import loader
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

QUICK = {"runtimes": ["eager"], "batch_sizes": [1], "rounds": 1}


def by_hand(width: int = 3) -> nn.Sequential:
    """12 weights and 3 biases, 6 weights: 21 parameters; a sample takes 2 * 12 + 2 * 6 = 36 FLOPs. All are ones."""
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2, bias=False))
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(1.0)
    return net


def three_of_twelve() -> nn.Sequential:
    """The same with 3 of the first 12 weights: 12 parameters are not zero, 18 FLOPs are of weights that are not."""
    net = by_hand()
    with torch.no_grad():
        net[0].weight[:, 1:] = 0.0
    return net


def labelled(count: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


class Data(LightningDataModule):
    """32 samples to learn, 16 others to validate on."""

    def train_dataloader(self):
        return DataLoader(labelled(), batch_size=8)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*labelled(48)[32:]), batch_size=8)


class Images(LightningDataModule):
    """Of noise, as other tests have them."""

    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


class Tiny(LightningModule):
    """What a user has: a forward, an accuracy.

    Args:
        width: of the hidden layer.
    """

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.net = by_hand(width)
        with torch.no_grad():
            for weight in self.net.parameters():
                weight.uniform_(-0.5, 0.5)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        found = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(found, batch[1]))
        self.log("val_acc", (found.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Mute(Tiny):
    """Without a forward of its own, as many LightningModules are."""

    forward = LightningModule.forward


def accuracy(model) -> float:
    """Counted by hand over the data that Data validates on."""
    inputs, labels = labelled(48)[32:]
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())


def loss(model) -> float:
    """The same of the loss."""
    inputs, labels = labelled(48)[32:]
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs), labels))
