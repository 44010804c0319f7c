"""CIFAR-10 from a file of JPEG bytes, and a VGG with BatchNorm for it. For channels.py."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def load(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images, normalised, float [n, 3, 32, 32], and labels int64 [n]."""
    from PIL import Image  # only here: the tables are made without it

    raw = np.load(path)
    data, ends = raw[f"jpg_{part}"], raw[f"off_{part}"]
    images = [np.asarray(Image.open(io.BytesIO(data[a:b].tobytes()))) for a, b in itertools.pairwise(ends)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    x -= torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    x /= torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(raw[f"y_{part}"]).long()


class Batches(torch.utils.data.IterableDataset[Any]):
    """Shuffled batches, each image mirrored and shifted by up to 4 pixels at random."""

    def __init__(self, x: Tensor, y: Tensor, size: int = 64) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for i in range(len(self)):
            chosen = order[i * self.size : (i + 1) * self.size]
            x = F.pad(self.x[chosen], (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2, self.size))
            rows = (top[:, None] + torch.arange(32))[:, None, :, None]
            columns = left[:, None] + torch.arange(32)
            columns = torch.where(torch.rand(self.size, 1) < 0.5, columns.flip(1), columns)[:, None, None, :]
            x = x[torch.arange(self.size)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
            yield x.contiguous(memory_format=torch.channels_last), self.y[chosen]


class VGG(LightningModule):
    """Network slimming's training: gammas start at 0.5; SGD 0.1, falling tenfold after a half and three quarters."""

    def __init__(self, width: float, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        layers: list[nn.Module] = []
        inputs = 3
        for size in VGG16:
            if isinstance(size, str):
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = int(size * width)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.net = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(inputs, 10))
        begin(self.net)
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        return [optimizer], [MultiStepLR(optimizer, [self.epochs // 2, self.epochs * 3 // 4])]


def begin(net: nn.Module) -> None:
    """First weights as the authors': He's for convolutions, 0.5 for gammas."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Per cent right, in evaluation mode."""
    net.eval()
    right = sum(int((net(x[i : i + 1000]).argmax(1) == y[i : i + 1000]).sum()) for i in range(0, len(x), 1000))
    return 100 * right / len(x)
