"""The look at data before training leaves no trace: what follows is what follows the same masks without a look."""

import random
import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import digest, loader, samples, stateful, trainer, weights
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_sparse import SNIP, Algorithm, GraSP, MaskUpdater, SynFlow


@dataclass(frozen=True)
class Given(Algorithm):
    """Masks that need no look at anything."""

    allocation: ClassVar[str] = "global"
    masks: dict = field(hash=False)

    def init(self, params):
        return {name: mask.clone() for name, mask in self.masks.items()}


class Busy(LightningModule):
    """Draws from every random state, keeps statistics, metrics and lists, and logs."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(64, 5)]
        self.net, self.mean, self.accuracy = nn.Sequential(*layers), MeanMetric(), MulticlassAccuracy(5)
        self.seen, self.steps = [], 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        parts = list(batch.values()) if isinstance(batch, dict) else [batch]
        x, y = map(torch.cat, zip(*parts[0], strict=True)) if isinstance(parts[0][0], list | tuple) else parts[0]
        if len(parts) > 1:
            x, y = torch.cat([x, parts[1][0]]), torch.cat([y, parts[1][1]])
        self.seen.append((batch_idx, digest({"x": x, "y": y})))
        self.steps += 1
        logits = self.net(x + random.random() + float(np.random.rand()) + torch.rand(()))  # noqa: NPY002
        loss = F.cross_entropy(logits, y)
        self.mean.update(loss)
        self.accuracy(logits, y)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log_dict({"loss": loss, "steps": float(self.steps)}, on_step=True, on_epoch=True)
        return {"loss": loss, "logits": logits}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def randomness():
    keys = np.random.get_state()  # noqa: NPY002
    return digest({"torch": torch.get_rng_state()}), random.getstate(), keys[1].tolist(), keys[2:]


class Snapshot(Callback):
    """What there is to see when the first batch starts, masks made; and after the run."""

    def __init__(self, data):
        self.data = data

    def look(self, fit, model):
        metrics = {f"{name}/{key}": str(value) for name, m in (("mean", model.mean), ("accuracy", model.accuracy))
                   for key, value in m.metric_state.items()}  # fmt: skip
        position = self.data.state_dict() if hasattr(self.data, "state_dict") else None
        own = getattr(self.data, "generator", None)
        return {
            "randomness": randomness(),
            "generator": None if own is None else own.get_state().tolist(),
            "position": str(position),
            "model": digest(weights(model)),
            "buffers": {name: value.tolist() for name, value in model.named_buffers()},
            "gradients": [None if w.grad is None else w.grad.tolist() for w in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "metrics": metrics,
            "logged": {name: value.item() for name, value in fit.callback_metrics.items()},
            "lists": (list(model.seen), model.steps),
        }

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.start = self.look(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        self.end = self.look(trainer, pl_module)


def fit(algorithm, make, epochs=2):
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    model, data = Busy(), make()
    watch, updater = Snapshot(data), MaskUpdater(algorithm, 0.3)
    trainer([updater, watch], max_epochs=epochs).fit(model, data)
    return updater.masks, watch.start, watch.end


class Noisy(Dataset):
    """Augments by the global random states."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        x, y = samples(16)[i]
        return x + torch.rand(()) + random.random() + np.float32(np.random.rand()), y  # noqa: NPY002


class OwnNoise(Noisy):
    """Augments by a random state of its own."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __getitem__(self, i):
        return samples(16)[i][0] + float(self.random.random()), samples(16)[i][1]


class Stream(IterableDataset):
    """Goes on, epoch after epoch, with a random state of its own."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        for _ in range(16):
            yield samples(16)[int(self.random.integers(16))]


class Buckets(BatchSampler):
    """Batches in an order of its own making."""

    def __init__(self):
        super().__init__(RandomSampler(range(16)), 4, False)
        self.random = random.Random(0)

    def __iter__(self):
        rows = list(super().__iter__())
        self.random.shuffle(rows)
        yield from rows


class Plain:
    """No DataLoader, with a random state of its own."""

    def __init__(self):
        self.random = random.Random(0)

    def __iter__(self):
        rows = list(loader(4, 16))
        self.random.shuffle(rows)
        yield from rows


class Module(LightningDataModule):
    def train_dataloader(self):
        return loader(4, 16, shuffle=True)


def two():
    return loader(4, 16, shuffle=True), loader(2, 16, shuffle=True)


MAKE = {
    "shuffled by the global state": lambda: loader(4, 16, shuffle=True),
    "shuffled by its own state": lambda: loader(4, 16, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "in a worker": lambda: loader(4, 16, shuffle=True, num_workers=1, persistent_workers=True),
    "stateful": lambda: stateful(4, 16, shuffle=True),
    "augmented": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "batches of the user's own": lambda: DataLoader(samples(16), batch_sampler=Buckets()),
    "a list of loaders": lambda: list(two()),
    "a combined loader": lambda: CombinedLoader(dict(zip("ab", two(), strict=True)), "max_size_cycle"),
    "a data module": Module,
    "a dataset with a state": lambda: DataLoader(OwnNoise(), batch_size=4),
    "a loader with a state": Plain,
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_what_follows_the_look_of_snip_is_what_follows_the_same_masks_without_it(make):
    assert_no_trace(SNIP(batches=2), make)


@pytest.mark.parametrize("name", ["stateful", "a stream"])
def test_what_follows_the_look_of_grasp_is_what_follows_the_same_masks_without_it(name):
    assert_no_trace(GraSP(samples=2) if name == "stateful" else GraSP(samples=None), MAKE[name])


@pytest.mark.parametrize("name", ["stateful", "augmented", "a stream"])
def test_synflow_that_takes_its_input_from_a_batch_leaves_no_trace(name):
    assert_no_trace(SynFlow(iterations=2), MAKE[name])


def assert_no_trace(algorithm, make):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*batch_size.*ambiguous.*")
        masks, *looked = fit(algorithm, make)
        given, *blind = fit(Given(masks), make)
    assert digest(masks) == digest(given)
    assert sum(int(mask.sum()) for mask in masks.values()) == 118  # 0.3 of 72 + 320
    assert looked[0]["lists"] == ([], 0)
    assert len(looked[1]["lists"][0]) >= 8
    for one, other in zip(looked, blind, strict=True):
        assert [key for key in one if one[key] != other[key]] == []
