"""What tests of MaskUpdater(compute=...) share: a run, and the comparison of two."""

from itertools import pairwise

import torch
from helpers import DENSITY, digest, loader, net, state_tensors, trainer, weights
from lightning.pytorch import Callback

from lightning_sparse import MaskUpdater, RigL

RIGL = RigL(every=3, stop=1.0)


class Recorder(Callback):
    """The masks after every step."""

    def __init__(self, updater):
        self.updater, self.masks, self.step = updater, [], 0

    def on_train_batch_end(self, trainer, *_):
        if self.step != trainer.global_step:
            self.step = trainer.global_step
            self.masks.append(digest(self.updater.masks))

    @property
    def moves(self):
        return sum(a != b for a, b in pairwise(self.masks))


def run(algorithm, compute, *, optimizer="adamw", callbacks=(), start=None, seed=1, data=None, **settings):
    """A float64 run of two epochs of twelve steps: what it ends with."""
    updater, model = MaskUpdater(algorithm, DENSITY, compute=compute), net(optimizer, seed=seed)
    recorder = Recorder(updater)
    fit = trainer([updater, recorder, *callbacks], **{"max_epochs": 2, "precision": "64-true", **settings})
    fit.fit(model, loader() if data is None else data, ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    return recorder, weights(model), state, updater, model, fit


def close(left, right):
    """Masks after every step equal; weights and optimizer state up to rounding."""
    assert left[0].masks == right[0].masks
    assert len(left[0].masks) > 0
    for ours, theirs in zip(left[1:3], right[1:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def both(make, algorithm=RIGL, *, callbacks=lambda: (), include=None, val=None, **settings):
    """The same run twice, sparse and dense: as :func:`computed.close` compares them."""
    ends = []
    for compute in ("sparse", "dense"):
        torch.manual_seed(1)
        updater, model = MaskUpdater(algorithm, DENSITY, compute=compute, include=include), make()
        recorder = Recorder(updater)
        fit = trainer([updater, recorder, *callbacks()], **{"max_epochs": 2, "precision": "64-true", **settings})
        fit.fit(model, loader(), val)
        state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
        ends.append((recorder, weights(model), state, updater, model, fit))
    return ends
