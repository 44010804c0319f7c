"""Channels out while training: the whole fit's time, live, against the dense run and against cutting at the end.

python benchmarks/channels.py [--data fashion_mnist.npz] [--images 6000] [--epochs 6] [--seeds 0 1]
A ResNet-18 of width 64 on 28 x 28 images; half of the channels leave after the first epoch, half of the rest after the
second; one arm stops at the first. The arms take turns in one process of one thread. A line for each run in
results/channels.jsonl; what is there is not run again.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from record import Row, read, versions
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_sparse import BNChannelPruner
from lightning_sparse.core.flops import count_flops

RESULTS = Path(__file__).parent / "results" / "channels.jsonl"
MNIST = Path(__file__).parent.parent / "examples" / "data" / "mnist.npz"
ARMS: dict[str, Callable[[list[int]], list[Callback]]] = {
    "dense": lambda at: [],
    "cut at the end": lambda at: [BNChannelPruner(0.25, at=at, shrink="end", scope="layer", round_to=8)],
    "live": lambda at: [BNChannelPruner(0.25, at=at, scope="layer", round_to=8)],
    "live, first cut only": lambda at: [BNChannelPruner(0.5, at=at[:1], scope="layer", round_to=8)],
}


class Block(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet(LightningModule):
    """ResNet-18 for small images: the first convolution has stride 2 and there is no pooling before the end."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        stem = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            for i in range(2):
                outputs = width << stage
                blocks.append(Block(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
        self.net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Clock(Callback):
    """Seconds of each epoch, with what other callbacks do at its end, and the model's FLOPs in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.work: list[float] = []  # seconds of the processor
        self.flops: list[float] = []
        self._since: tuple[float, float] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._since = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._note()
        self.flops.append(sum(count_flops(pl_module.net, torch.zeros(1, 1, 28, 28)).values()))
        self._since = time.perf_counter(), time.process_time()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._note()

    def _note(self) -> None:
        if self._since is not None:
            self.seconds.append(round(time.perf_counter() - self._since[0], 2))
            self.work.append(round(time.process_time() - self._since[1], 2))


def data(path: Path, part: str, limit: int) -> TensorDataset:
    """Images [n, 1, 28, 28], normalised, and labels."""
    raw = np.load(path)
    x = torch.from_numpy(raw[f"x_{part}"][:limit]).float().div(255).sub(0.2860).div(0.3530)[:, None]
    return TensorDataset(x, torch.from_numpy(raw[f"y_{part}"][:limit]).long())


@torch.no_grad()
def accuracy(model: ResNet, test: TensorDataset) -> float:
    """Per cent right, in evaluation mode."""
    model.eval()
    right = sum(int((model.net(x).argmax(1) == y).sum()) for x, y in DataLoader(test, batch_size=500))
    return 100 * right / len(test)


def run(arm: str, seed: int, settings: argparse.Namespace) -> Row:
    """One whole fit."""
    seed_everything(seed, verbose=False)
    model, clock = ResNet(settings.width), Clock()
    train = data(settings.data, "train", settings.images)
    order = BatchSampler(RandomSampler(train), 64, drop_last=True)
    trainer = Trainer(
        max_epochs=settings.epochs, callbacks=[*ARMS[arm]([1, 2]), clock], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    began = time.perf_counter(), time.process_time()
    trainer.fit(model, DataLoader(train, batch_size=None, sampler=order))
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    return {
        "arm": arm, "seed": seed, "epochs": settings.epochs, "images": settings.images, "data": settings.data.stem,
        "width": settings.width, "fit_seconds": round(took[0], 1), "fit_work_seconds": round(took[1], 1),
        "epoch_seconds": clock.seconds, "epoch_work_seconds": clock.work, "flops": clock.flops,
        "accuracy": round(accuracy(model, data(settings.data, "test", 10_000)), 2),
        "params": sum(p.numel() for p in model.parameters()), **versions(),
    }  # fmt: skip


def table(path: Path = RESULTS) -> str:
    """Medians over the seeds; seconds are CPU time, so that what else ran on the machine counts little."""
    rows = read(path)
    lines = ["| run | whole fit | of dense | epochs, s | accuracy | parameters |", "|---|---|---|---|---|---|"]
    whole = median(float(r["fit_work_seconds"]) for r in rows if r["arm"] == "dense")
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        fit = median(float(r["fit_work_seconds"]) for r in mine)
        epochs = zip(*(r["epoch_work_seconds"] for r in mine), strict=True)
        accuracies = ", ".join(f"{r['accuracy']:.2f}" for r in mine)
        times = " ".join(f"{median(epoch):.1f}" for epoch in epochs)
        lines.append(f"| {arm} | {fit:.0f} s | {fit / whole:.0%} | {times} | {accuracies} | {mine[-1]['params']:,} |")
    return "\n".join(lines)


def ratios(path: Path = RESULTS) -> str:
    """Of each cut of the live run: an epoch's time after and before it, beside the FLOPs."""
    live = [r for r in read(path) if r["arm"] == "live"]
    lines = ["| cut | epoch after / before | FLOPs after / before |", "|---|---|---|"]
    for cut in (1, 2):
        times = median(r["epoch_work_seconds"][cut] / r["epoch_work_seconds"][cut - 1] for r in live)
        flops = median(r["flops"][cut] / r["flops"][cut - 1] for r in live)
        lines.append(f"| {cut} | {times:.3f} | {flops:.3f} |")
    return "\n".join(lines)


def done(settings: argparse.Namespace) -> set[tuple[str, int]]:
    """Arm and seed of the rows that were run with these settings."""
    wanted = (settings.epochs, settings.images, settings.data.stem, settings.width)
    rows = read(settings.out) if settings.out.exists() else []
    return {(r["arm"], r["seed"]) for r in rows if (r["epochs"], r["images"], r["data"], r["width"]) == wanted}


def main() -> None:
    """All arms for each seed, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=MNIST)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    for seed in settings.seeds:
        for arm in ARMS:
            if (arm, seed) in done(settings):
                continue
            row = run(arm, seed, settings)
            print(row, flush=True)
            with settings.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
