"""Failure modes 31 to 38: what a checkpoint holds, and how a run goes on from it."""

import sys

import pytest
import torch
from helpers import LIVE, QUIET, Net, digest, loader, net, same, saver, state_tensors, stateful, weights
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from modes import mode
from runs import MOVING, run

from lightning_sparse import GMP, MaskUpdater, RigL, SparseMomentum, Static

STATE = "lightning_sparse.MaskUpdater"


def stored(path) -> dict:
    return torch.load(path, weights_only=True)


def resumed(folder, step, **settings):
    """A whole run and one from a checkpoint of it: the masks, weights and optimizer state of each."""
    ends = []
    for start, seed in ((None, 1), (folder / f"step={step}.ckpt", 7)):
        fit = run(
            settings.get("algorithm", MOVING),
            "",
            saver(folder, 1),
            model=net("adamw", 0.25, seed=seed),
            data=stateful(shuffle=True),
            start=start,
            enable_checkpointing=True,
            **{key: value for key, value in settings.items() if key != "algorithm"},
        )
        ends.append((fit.updater.masks, weights(fit.model), state_tensors(fit.trainer.optimizers[0])))
    return ends


@mode(
    31,
    "a resumed run is another run",
    right="bit for bit the uninterrupted one: in the middle of an epoch, on an update, with accumulated batches",
)
@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (5, {}),
        (6, {"algorithm": SparseMomentum(every=2)}),
        (4, {"accumulate_grad_batches": 2, "max_epochs": 2}),
    ],
    ids=["mid-epoch", "on an update", "accumulated"],
)
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(step, settings, tmp_path):
    whole, again = resumed(tmp_path, step, **settings)
    assert all(same(left, right) for left, right in zip(whole, again, strict=True))


class Watched(Trainer):
    """Notes when the number of steps is asked for."""

    started = False

    @property
    def estimated_stepping_batches(self):
        self.asked = [*getattr(self, "asked", []), self.started]
        return super().estimated_stepping_batches


class Starts(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.started = True


@mode(
    32,
    "`estimated_stepping_batches` read before `on_train_start` breaks the resuming of stateful loaders",
    right="never read before",
)
def test_the_length_of_the_run_is_asked_for_only_when_training_starts():
    fit = Watched(**QUIET, max_epochs=1, callbacks=[Starts(), MaskUpdater(MOVING)])
    fit.fit(net(), stateful())
    assert fit.asked
    assert all(fit.asked)


@mode(33, "`global_step` is 0 in `on_fit_start` of a resumed run", right="steps are counted on from the checkpoint")
def test_steps_are_counted_on_from_a_checkpoint(tmp_path):
    algorithm = RigL(every=4, stop=12)
    run(algorithm, "sgd", saver(tmp_path, 6), enable_checkpointing=True, data=stateful())
    start = tmp_path / "step=6.ckpt"
    again = run(algorithm, "sgd", saver(tmp_path, 6), enable_checkpointing=True, data=stateful(), start=start)
    assert (again.updater.sparsifier.steps, again.updater.sparsifier.updates) == (12, 3)
    assert len(again.recorder.masks) == 6
    moved = [i + 7 for i in range(1, 6) if again.recorder.masks[i] != again.recorder.masks[i - 1]]
    assert moved == [8]  # and not 6 + 4; in the update after step 12 the share to move is 0


@mode(34, "a checkpoint of a step in which masks moved", right="masks and weights in it are those after the step")
def test_masks_and_weights_of_every_checkpoint_belong_together(tmp_path):
    fit = run(MOVING, "sgd", saver(tmp_path, 1), enable_checkpointing=True)
    for step in range(1, 13):
        found = stored(tmp_path / f"step={step}.ckpt")
        updater = MaskUpdater(MOVING)
        updater.load_state_dict(found["callbacks"][STATE])
        assert digest(updater.masks) == fit.recorder.masks[step - 1]
        dead = [found["state_dict"][name][~mask] for name, mask in updater.masks.items()]
        assert not any(bool(value.any()) for value in dead)


@mode(35, "`weights_only=True`, Lightning's default from 2.6 on", right="every checkpoint of ours loads so")
@pytest.mark.parametrize("algorithm", [MOVING, SparseMomentum(every=2), GMP(every=3)], ids=lambda a: type(a).__name__)
def test_a_checkpoint_holds_tensors_and_plain_containers_only(algorithm, tmp_path):
    run(algorithm, "adamw", saver(tmp_path, 6), enable_checkpointing=True)
    state = stored(tmp_path / "step=6.ckpt")["callbacks"][STATE]
    assert state["params"].keys() == LIVE.keys()


@mode(36, "`--ckpt_path` of a command line", right="goes on as `fit(ckpt_path=...)` does")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*args parameter.*", "ignore:.*is not resumable.*")
def test_a_command_line_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    quiet = ["logger=false", "enable_progress_bar=false", "enable_model_summary=false", "accelerator=cpu"]
    common = [f"--trainer.{setting}" for setting in (*quiet, "limit_val_batches=0", "max_steps=8")]
    masks = ["--trainer.callbacks=lightning_sparse.MaskUpdater", "--trainer.callbacks.density=0.25"]
    rule = ["--trainer.callbacks.algorithm=lightning_sparse.RigL", "--trainer.callbacks.algorithm.every=2"]
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=4"]
    keep += [f"--trainer.callbacks.dirpath={tmp_path}", "--trainer.callbacks.filename={step}"]
    keep += ["--trainer.callbacks.save_top_k=-1"]
    ends = []
    for seed, more in ((1, []), (2, [f"--ckpt_path={tmp_path / 'step=4.ckpt'}"])):
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the CLI sets it; this takes it back
        args = ["fit", f"--seed_everything={seed}", *common, *masks, *rule, *keep, *more]
        LightningCLI(BoringModel, save_config_callback=None, args=args)
        state = stored(max(tmp_path.glob("step=8*.ckpt"), key=lambda path: path.stat().st_mtime_ns))["callbacks"][STATE]
        ends.append((state["updates"], state["params"]["layer.weight"]))
    (updates, row), (again, other) = ends
    assert updates == again == 3
    assert (row["live"], row["steps"]) == (other["live"], other["steps"]) == (16, 8)
    assert torch.equal(row["mask"], other["mask"])


@mode(37, "a checkpoint needs the package that wrote it", right="it loads strictly into plain Lightning")
def test_a_checkpoint_loads_without_this_package(tmp_path, monkeypatch):
    fit = run(MOVING, "adamw", saver(tmp_path, 12), enable_checkpointing=True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning_sparse"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    plain = Net.load_from_checkpoint(tmp_path / "step=12.ckpt", strict=True)
    assert plain.state_dict().keys() == Net().state_dict().keys()
    assert same(weights(plain), weights(fit.model))


@mode(
    38,
    "`save_weights_only` leaves out the callback's state",
    right='the weights load anywhere, and `init="magnitude"` finds the masks in their zeros',
)
def test_masks_are_found_in_the_zeros_of_weights_saved_alone(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="weights", save_weights_only=True)
    fit = run(Static(), "sgd", keep, enable_checkpointing=True)
    found = stored(tmp_path / "weights.ckpt")
    assert "callbacks" not in found
    model = net(seed=9)
    model.load_state_dict(found["state_dict"])
    again = run(Static(), model=model, data=loader(), masks={"init": "magnitude"})
    assert same(again.updater.masks, fit.updater.masks)
