"""What keep is a share of: latency; and a threshold instead."""

import pytest
import torch
from lightning.pytorch import Callback
from pruned import CHANNELS, fit, pruner, widths

from lightning_sparse.channels.latency import Trial


def test_latency_is_a_target_too(monkeypatch):
    """With a clock that says what share of channels is left."""

    class Clock:
        where, runs = "a clock", 1

        def __init__(self, model, graph, run):
            self.run = run

        def time(self, kept):
            assert self.run().ndim == 0  # a training step on a real batch
            share = sum(map(len, kept.values())) / CHANNELS
            return Trial(share, 1.0, share)

    monkeypatch.setattr("lightning_sparse.channels.decide.Stopwatch", Clock)
    model, _, _ = fit(pruner(0.5, target="latency"))
    assert sum(widths(model)) == pytest.approx(18, abs=1)


def test_a_threshold_takes_what_is_below_it_every_time():
    """By hand: gammas of the third axis are set; two are below at the first epoch's end, two more at the second's."""

    class Setting(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            with torch.no_grad():
                for module in (pl_module.bn, pl_module.block.bn1, pl_module.bn3):
                    module.weight.fill_(1.0)
                pl_module.bn3.weight[:2] = 0.1

    found = []

    class Widths(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            found.append(widths(pl_module))

    fit(pruner(threshold=0.3, every=1), Setting(), Widths(), max_epochs=-1, max_steps=36)
    assert found == [(16, 8, 12), (16, 8, 10), (16, 8, 8)]
