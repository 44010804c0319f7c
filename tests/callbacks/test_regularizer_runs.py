"""Regularizer through checkpoints, copies, errors and loggers."""

import csv
import pickle
import sys
from copy import deepcopy

import lightning.pytorch as pl
import lightning.pytorch.demos.boring_classes as ours
import pytest
import pytorch_lightning
import pytorch_lightning.demos.boring_classes as theirs
import torch
from helpers import DENSITY, QUIET, Net, loader, net, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from penalized import NAMES, close, fitted, idle

from lightning_sparse import LinearSchedule, MaskUpdater, Regularizer, RigL, cli
from lightning_sparse.penalties import GroupLasso


@pytest.mark.parametrize("settings", [{}, {"proximal": True}, {"on": "activations"}], ids=str)
@pytest.mark.parametrize("step", [4, 12, 20])
def test_a_resumed_run_goes_on_bit_for_bit(step, settings, tmp_path):
    def run(start=None, seed=1):
        regularizer = Regularizer("l1", LinearSchedule(0.0, 1e-2), **settings)
        callbacks = [regularizer, MaskUpdater(RigL(every=5, stop=1.0), DENSITY), saver(tmp_path, 4)]
        fit = trainer(callbacks, max_epochs=2, enable_checkpointing=True)
        model = net("adamw", 0.25, seed=seed)
        fit.fit(model, stateful(shuffle=True), ckpt_path=start)
        return weights(model), state_tensors(fit.optimizers[0]), regularizer.state_dict()

    whole, again = run(), run(tmp_path / f"step={step}.ckpt", seed=7)
    assert same(whole[0], again[0])
    assert same(whole[1], again[1])
    assert whole[2] == again[2] == {"version": 1, "steps": [24]}


def test_checkpoints_hold_counts_alone_under_a_name_that_stays(tmp_path):
    fitted([Regularizer("l1", 1e-3, name="mine"), saver(tmp_path, 4)], enable_checkpointing=True)
    stored = torch.load(tmp_path / "step=8.ckpt", weights_only=True)
    assert stored["callbacks"]["lightning_sparse.mine"] == {"version": 1, "steps": [8]}
    assert stored["state_dict"].keys() == net().state_dict().keys()


def rates(strength, fit, model, start=None):
    """By how much each epoch of a fit moved a weight that is far from zero, in units of lr."""
    index = weights(model)["net.4.weight"].abs().argmax()
    before = weights(model)["net.4.weight"].flatten()[index].abs()
    fit.fit(model, loader(), ckpt_path=start)
    return float(before - weights(model)["net.4.weight"].flatten()[index].abs()) / 0.1


def test_a_second_fit_begins_anew_and_a_trainer_that_goes_on_counts_on(tmp_path):
    regularizer = Regularizer("l1", LinearSchedule(0.0, 12e-3))
    wanted = 1e-3 * sum(range(12))  # steps 0 to 11 of 12
    for _ in range(2):
        fit = trainer([regularizer], max_epochs=1)
        assert rates(regularizer, fit, idle()) == pytest.approx(wanted, rel=1e-3)
        assert regularizer.state_dict()["steps"] == [12]
    fit.fit_loop.max_epochs = 2
    assert rates(regularizer, fit, idle()) == pytest.approx(0.5e-3 * sum(range(12, 24)), rel=1e-3)
    assert regularizer.state_dict()["steps"] == [24]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
def test_what_a_test_loads_is_not_for_the_next_fit(tmp_path):
    fitted([Regularizer("l1", 1e-3), saver(tmp_path, 8)], enable_checkpointing=True)
    regularizer = Regularizer("l1", LinearSchedule(0.0, 12e-3))
    fit = trainer([regularizer], max_epochs=1)
    fit.test(idle(), loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    assert rates(regularizer, fit, idle()) == pytest.approx(1e-3 * sum(range(12)), rel=1e-3)


def test_it_travels_as_a_copy_and_through_pickle():
    regularizer = Regularizer(GroupLasso("neurons"), LinearSchedule(0.0, 1e-3), exclude=["net.6"])

    class Copying(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.copies = [deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))]

    watch = Copying()
    fitted([regularizer, watch])
    for copy in watch.copies:
        assert copy.state_dict() == {"version": 1, "steps": [12]}
        assert (copy.penalty, copy.strength, copy.exclude) == (regularizer.penalty, regularizer.strength, ["net.6"])
        fitted([copy])


def hooks(model, optimizer):
    found = [len(module._forward_hooks) for module in model.modules()]
    return sum(found) + len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)


@pytest.mark.parametrize("on", ["weights", "activations"])
def test_no_hook_is_left_behind_even_after_an_error(on):
    model, fit = fitted([Regularizer("l1", 1e-3, on=on)])
    assert hooks(model, fit.optimizers[0]) == 0

    class Failing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.optimizer, self.hooks = trainer.optimizers[0], hooks(pl_module, trainer.optimizers[0])
            raise RuntimeError("stop here")

    failing, model = Failing(), net()
    with pytest.raises(RuntimeError, match="stop here"):
        fitted([Regularizer("l1", 1e-3, on=on), failing], model)
    assert failing.hooks >= 2
    assert hooks(model, failing.optimizer) == 0


@pytest.mark.parametrize("on", ["weights", "activations"])
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed")  # torch's own look
def test_a_compiled_model_trains_the_same(on):
    runs = []
    for compiled in (False, True):
        model = net()
        fitted(
            [Regularizer("l1", 1e-2, on=on)], torch.compile(model, backend="eager") if compiled else model, max_steps=3
        )
        runs.append(model)
    close(*runs, rtol=1e-5, atol=1e-6)


def test_both_packages_take_it():
    for package, boring in ((pl, ours), (pytorch_lightning, theirs)):
        fit = package.Trainer(**QUIET, max_steps=2, callbacks=Regularizer("l1", 1e-3))
        fit.fit(boring.BoringModel())
        assert fit.global_step == 2




class Logging(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def logged(callbacks, folder):
    """What a CSVLogger has of the third step of a fit."""
    model = Logging()
    model.load_state_dict(net().state_dict())
    fitted(callbacks, model, logger=CSVLogger(folder, name="csv", version="0"), log_every_n_steps=3, max_steps=3)
    with (folder / "csv" / "0" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    return model, row


def test_the_penalty_is_logged_beside_a_loss_that_stays_the_tasks(tmp_path):
    model, row = logged([Regularizer("l1", 0.5)], tmp_path / "a")
    total = sum(float(weights(model)[name].abs().sum()) for name in NAMES)
    assert float(row["Regularizer/penalty"]) == pytest.approx(0.5 * total)
    _, plain = logged([], tmp_path / "b")
    _, free = logged([Regularizer("l1", 0.0, name="a"), Regularizer("l1", 1e-9, on="activations")], tmp_path / "c")
    assert (row["step"], free["step"]) == ("2", "2")
    assert float(free["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)
    assert 0 < float(free["Regularizer/penalty"]) < 1e-6
    assert float(free["a/penalty"]) == 0


def test_what_activations_pay_is_what_it_says():
    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.paid = float(trainer.callback_metrics["Regularizer/penalty"])

    watch, start = Watch(), net()
    with torch.no_grad():
        images = next(iter(loader()))[0]
        first = start.net[:2](images)
        total = float(first.abs().sum() + start.net[2:6](first).abs().sum()) / len(images)
    fitted([Regularizer("l1", 0.5, on="activations"), watch], max_steps=1, log_every_n_steps=1)
    assert watch.paid == pytest.approx(0.5 * total, rel=1e-5)


def test_a_start_says_what_is_penalized_and_what_is_left_out(caplog):
    with caplog.at_level("INFO"):
        fitted([Regularizer(GroupLasso("kernels"), 1e-3)])
    assert "GroupLasso(groups='kernels', by_size=True) on weights of 1 layers, strength 0.001" in caplog.text
    assert "left out net.4.weight: groups='kernels' need 3 dimensions, it has 2; net.6.weight" in caplog.text


YAML = """
model:
  class_path: lightning.pytorch.demos.boring_classes.BoringModel
trainer:
  accelerator: cpu
  max_steps: 4
  limit_val_batches: 0
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_sparse.Regularizer
      init_args:
        penalty:
          class_path: lightning_sparse.penalties.GroupLasso
          init_args:
            groups: inputs
        strength:
          class_path: lightning_sparse.LinearSchedule
          init_args:
            start: 50.0
        proximal: true
    - class_path: lightning_sparse.Regularizer
      init_args:
        penalty: elastic
        strength:
          lay*: 0.001
        name: second
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_it_works_from_yaml(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    (tmp_path / "config.yaml").write_text(YAML)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the script sets it; this takes it back
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lightning-sparse", "fit", "--config", "config.yaml"])
    cli.main()
    (path,) = tmp_path.rglob("*.ckpt")
    stored = torch.load(path, weights_only=True)
    assert stored["callbacks"]["lightning_sparse.second"] == {"version": 1, "steps": [4]}
    assert not bool(stored["state_dict"]["layer.weight"].any())
