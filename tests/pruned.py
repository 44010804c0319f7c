"""What the tests of BNChannelPruner share: a small network with BatchNorm and a residual, and runs with it."""

import torch
from helpers import OPTIMIZERS, loader, saver, state_tensors, trainer
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner

# Axes: the stem with the second convolution of the block (16 channels together), the first of the block (8), and the
# hidden layer of the head (12): 36 channels that can go. The outputs of the head stay.
CHANNELS = 36


class Block(nn.Module):
    def __init__(self, width: int = 16, inner: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(LightningModule):
    """A classifier that knows nothing of pruning."""

    def __init__(self, optimizer: str = "sgd", dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block, self.dropout = Block(width), nn.Dropout(dropout)
        self.hidden, self.bn3, self.head = nn.Linear(width, 12, bias=False), nn.BatchNorm1d(12), nn.Linear(12, 5)
        self.optimizer = optimizer

    def forward(self, x):
        x = self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3))
        return self.head(F.relu(self.bn3(self.hidden(self.dropout(x)))))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


class Data(LightningDataModule):
    """For LightningCLI."""

    def train_dataloader(self):
        return loader()

    test_dataloader = train_dataloader


def net(optimizer: str = "sgd", dropout: float = 0.0, seed: int = 1, width: int = 16) -> Net:
    """Weights by ``seed`` alone; gammas and running statistics are not all alike."""
    torch.manual_seed(seed)
    model = Net(optimizer, dropout, width)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    torch.manual_seed(seed)
    return model


def pruner(keep: float = 0.5, **settings) -> BNChannelPruner:
    """Cuts at the end of the first epoch, with no rounding to what the device likes."""
    when = {} if {"every", "at_steps"} & set(settings) else {"at": 1}
    return BNChannelPruner(keep, **{"round_to": 1, **when, **settings})


def fit(callback, *others, model=None, data=None, val=None, start=None, folder=None, **settings):
    """Three epochs of twelve steps of four samples; returns model, Trainer and the optimizer's state."""
    model = net() if model is None else model
    keeping = [saver(folder, 4)] if folder else []
    callbacks = [each for each in (callback, *others, *keeping) if each is not None]
    run = trainer(callbacks, **{"max_epochs": 3, "enable_checkpointing": bool(folder), **settings})
    run.fit(model, loader() if data is None else data, val, ckpt_path=start)
    return model, run, [{n: t.clone() for n, t in state_tensors(o).items()} for o in run.optimizers]


def widths(model: Net) -> tuple[int, int, int]:
    """Of the three axes."""
    return model.stem.out_channels, model.block.conv1.out_channels, model.hidden.out_features
