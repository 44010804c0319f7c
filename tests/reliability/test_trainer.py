"""Failure modes 62 to 66, 71 and 72: what else a Trainer can be told."""

import copy
import pickle

import pytest
import torch
from helpers import DENSITY, LIVE, digest, loader, net, same, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from modes import mode
from runs import MOVING, hooks, leaks, run

from lightning_sparse import DensityLogger, MaskUpdater, Regularizer


@mode(62, "precision: bf16-mixed, 16-mixed, bf16-true, 64-true", right="sparse and exact in each")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_weights_stay_sparse_in_every_precision(precision):
    how = {"precision": precision}
    if precision == "16-mixed":
        how = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))]}
    fit = run(MOVING, "adamw", **how)
    assert (fit.recorder.leaks, fit.recorder.state_leaks) == (0, 0)
    assert fit.recorder.counts == [LIVE] * 12
    assert fit.recorder.moves >= 5


@mode(63, "`fast_dev_run`, `barebones`, no logger, several loggers", right="the same masks in each")
@pytest.mark.parametrize("kind", ["fast_dev_run", "barebones", "no logger", "two loggers"])
def test_every_kind_of_trainer_makes_the_same_masks(kind, tmp_path):
    loggers = [CSVLogger(tmp_path / name) for name in "ab"]
    settings = {"fast_dev_run": {"fast_dev_run": 12}, "barebones": {"barebones": True}}
    fit = run(MOVING, "sgd", DensityLogger(), **{"two loggers": {"logger": loggers}, **settings}.get(kind, {}))
    assert fit.updater.sparsifier.updates == 5
    assert same(fit.updater.masks, run().updater.masks)


class Hooks(Callback):
    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.add(hooks(trainer.optimizers[0]))


@mode(64, "a second fit, with an optimizer that persists", right="one pair of hooks in a fit, none after")
def test_a_second_fit_doubles_no_hooks():
    model, updater, seen = net(), MaskUpdater(MOVING, DENSITY), Hooks()
    optimizer = model.configure_optimizers()
    model.configure_optimizers = lambda: optimizer
    for _ in range(2):
        trainer([updater, seen], max_epochs=1).fit(model, loader())
        assert hooks(optimizer) == 0
        assert leaks(model, updater.masks) == 0
    assert seen.seen == {2}
    assert updater.sparsifier.updates == 10


@mode(
    65,
    "deepcopy and pickle of callback, model and optimizer while they train",
    right="copies are free of hooks, and bring their masks",
)
def test_copies_are_free_and_bring_their_masks(tmp_path):
    copies = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                (updater,) = [c for c in trainer.callbacks if isinstance(c, MaskUpdater)]
                optimizer = trainer.optimizers[0]
                same_again = [updater, copy.deepcopy(updater), pickle.loads(pickle.dumps(updater))]
                masks = [digest(each.masks) for each in same_again]
                free = [hooks(copy.deepcopy(optimizer)), hooks(pickle.loads(pickle.dumps(optimizer)))]
                nets = [copy.deepcopy(pl_module.net), pickle.loads(pickle.dumps(pl_module.net))]
                copies.append((masks, free, [same(weights(each), weights(pl_module.net)) for each in nets]))

    updater = MaskUpdater(MOVING, DENSITY)
    trainer([updater, Copies()], max_epochs=1).fit(net("adamw"), loader())  # the recorder's hooks do not pickle
    ((masks, free, equal),) = copies
    assert masks == [masks[0]] * 3
    assert free == [0, 0]
    assert equal == [True, True]
    assert updater.sparsifier.updates == 5


@mode(
    66,
    "`log` is forbidden in setup, on_fit_start, on_validation_end, on_train_end, teardown",
    right="never called there",
)
def test_nothing_is_logged_where_lightning_forbids_it(monkeypatch, tmp_path):
    where = []
    model = net()
    plain = type(model).log

    def log(self, name, *args, **kwargs):
        where.append((self._current_fx_name, name))
        return plain(self, name, *args, **kwargs)

    monkeypatch.setattr(type(model), "log", log)
    callbacks = [MaskUpdater(MOVING, DENSITY), DensityLogger(1), Regularizer("l1", 1e-4)]
    fit = trainer(callbacks, max_epochs=2, logger=CSVLogger(tmp_path))
    fit.fit(model, loader(), loader(8, 16))
    fit.validate(model, loader(8, 16), verbose=False)
    fit.test(model, loader(8, 16), verbose=False)
    ours = {hook for hook, name in where if name != "val_loss"}
    assert {"on_train_batch_end", "on_train_epoch_end"} <= ours
    assert not ours & {"setup", "on_fit_start", "on_validation_end", "on_train_end", "on_fit_end", "teardown"}


@mode(71, "masks made in inference mode cannot be trained with", right="none are made outside a fit")
def test_a_validation_before_the_fit_leaves_no_inference_tensors():
    updater, model = MaskUpdater(MOVING, DENSITY), net()
    fit = trainer([updater], max_epochs=1)
    fit.validate(model, loader(8, 16), verbose=False)
    assert updater.masks == {}
    fit.fit(model, loader(), loader(8, 16))
    fit.test(model, loader(8, 16), verbose=False)
    assert not any(mask.is_inference() for mask in updater.masks.values())
    trainer([updater], max_epochs=1).fit(model, loader())
    assert updater.sparsifier.updates == 10


@mode(72, "`profiler`, `detect_anomaly`, `overfit_batches`", right="work as without")
@pytest.mark.parametrize(
    "settings",
    [{"profiler": "simple"}, {"detect_anomaly": True}, {"overfit_batches": 6, "max_epochs": 2}],
    ids=lambda s: next(iter(s)),
)
def test_debugging_aids_work(settings, tmp_path):
    fit = run(MOVING, "sgd", default_root_dir=tmp_path, **settings)
    assert (fit.updater.sparsifier.steps, fit.updater.sparsifier.updates) == (12, 5)
    assert fit.recorder.leaks == 0
