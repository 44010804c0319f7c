"""Real MNIST, LeNet-300-100, and two convolutional networks with BatchNorm, as the other examples use them.

Nothing here knows of sparsity: this is the code that a user already has.
"""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler, TensorDataset

DATA = Path(__file__).parent / "data" / "mnist.npz"


class MNIST(LightningDataModule):
    """The full set: 60,000 training and 10,000 test images.

    Args:
        data: a file with x_train, y_train, x_test and y_test, as MNIST's or Fashion-MNIST's.
        batch_size: images a step.
        limit: train on that many images only; 0 takes all.
    """

    def __init__(self, data: str = str(DATA), batch_size: int = 128, limit: int = 0) -> None:
        super().__init__()
        self.data, self.batch_size, self.limit = data, batch_size, limit

    def setup(self, stage: str) -> None:
        raw = np.load(self.data)
        self.sets = {}
        for part in ("train", "test"):
            images = torch.from_numpy(raw[f"x_{part}"]).float().div(255).sub(0.1307).div(0.3081)
            self.sets[part] = TensorDataset(images, torch.from_numpy(raw[f"y_{part}"]).long())
        if self.limit:
            self.sets["train"] = TensorDataset(*self.sets["train"][: self.limit])

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", RandomSampler(self.sets["train"]), self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self._loader("test", SequentialSampler(self.sets["test"]), 1000)

    test_dataloader = val_dataloader

    def _loader(self, part: str, order: Sampler, size: int) -> DataLoader:
        # a batch at a time: slicing tensors once is much faster than collating single images
        return DataLoader(self.sets[part], batch_size=None, sampler=BatchSampler(order, size, drop_last=False))


class LeNet(LightningModule):
    """LeNet-300-100: two hidden layers, 266,200 weights.

    Args:
        lr: peak learning rate of SGD with Nesterov momentum; a cosine takes it to zero.
    """

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class ConvNet(LeNet):
    """A small VGG, or ResNet, with BatchNorm; trained as LeNet is.

    Args:
        kind: "vgg" or "resnet".
        width: channels of the first layers; twice as many after the first pooling.
        lr: peak learning rate.
    """

    def __init__(self, kind: str = "vgg", width: int = 16, lr: float = 0.05) -> None:
        super().__init__(lr)

        def conv(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        def stage(channels: int) -> list[nn.Module]:
            return [Residual(channels), Residual(channels)] if kind == "resnet" else conv(channels, channels)

        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)]
        start = [nn.Unflatten(1, (1, 28)), nn.MaxPool2d(2), *conv(1, width), *stage(width), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*start, *conv(width, 2 * width), *stage(2 * width), *head)
