"""Going on where Lightning leaves something undone: at the end of an epoch or of a run, inside a window, twice."""

import random

import pytest
import torch
from helpers import DENSITY, loader, net, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sparse import SET, MaskUpdater

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each life writes into a folder of its own
ALGORITHM = SET(every=5, stop=1.0)


class Began(Callback):
    """How often training and its epochs began."""

    def __init__(self):
        self.times = self.epochs = 0

    def on_train_start(self, trainer, pl_module):
        self.times += 1

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs += 1


def run(folder, *others, start=None, seed=1, every=1, **settings):
    """Two epochs of twelve batches with dropout and shuffling."""
    updater, model = MaskUpdater(ALGORITHM, DENSITY), net("adamw", 0.25, seed=seed)
    fit = trainer([updater, *others, saver(folder, every)], enable_checkpointing=True, **{"max_epochs": 2, **settings})
    fit.fit(model, stateful(shuffle=True), ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    dice = {"torch": torch.get_rng_state(), "python": torch.tensor(random.getstate()[1])}
    return {"steps": fit.global_step, "masks": updater.masks, "weights": weights(model), "state": state, "dice": dice}


def equal(left, right) -> bool:
    parts = ("masks", "weights", "state", "dice")
    return left["steps"] == right["steps"] and all(same(left[part], right[part]) for part in parts)


@pytest.mark.parametrize(
    ("file", "steps", "begins"), [("step=24", -1, True), ("epoch=1", -1, False), ("step=15", 15, False)]
)
def test_random_states_come_back_where_no_step_is_left(file, steps, begins, tmp_path):
    """As they were when the run ended: nothing is drawn for an epoch that does not come."""
    ends, began = [], []
    for start, seed in ((None, 1), (tmp_path / f"{file}.ckpt", 7)):
        began.append(Began())
        each = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
        ends.append(run(tmp_path, began[-1], each, start=start, seed=seed, every=3, max_steps=steps)["dice"])
    assert [each.times for each in began] == [1, int(begins)], "Lightning begins to train where the epoch is not ended"
    assert same(*ends)


@pytest.mark.parametrize(("first", "second"), [(12, 13), (12, 24), (13, 20)])
def test_a_run_that_goes_on_twice_ends_bit_for_bit_as_the_whole_one(first, second, tmp_path):
    """Each time from a checkpoint of the life before."""
    whole, began = run(tmp_path / "0"), Began()
    run(tmp_path / "1", began, start=tmp_path / "0" / f"step={first}.ckpt", seed=7)
    assert began.epochs == (first == 12), "the second epoch begins after the twelfth step"
    assert equal(whole, run(tmp_path / "2", start=tmp_path / "1" / f"step={second}.ckpt", seed=8))


def test_no_checkpoint_is_saved_again_inside_the_first_window_of_accumulated_batches(tmp_path):
    whole = run(tmp_path / "0", every=2, accumulate_grad_batches=2)
    run(tmp_path / "1", start=tmp_path / "0" / "step=4.ckpt", seed=7, every=2, accumulate_grad_batches=2)
    assert {path.stem for path in (tmp_path / "1").iterdir()} == {f"step={n}" for n in (6, 8, 10, 12)}
    start = tmp_path / "1" / "step=6.ckpt"
    assert equal(whole, run(tmp_path / "2", start=start, seed=8, every=2, accumulate_grad_batches=2))


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("kind", [loader, stateful])
def test_no_epoch_is_lost_after_a_checkpoint_of_its_last_batch(kind, validated, tmp_path):
    """Even where random states are not asked for."""
    data = {"val_dataloaders": loader(8, 16)} if validated else {}
    steps = []
    for start in (None, tmp_path / "step=12.ckpt"):
        updater, model = MaskUpdater(ALGORITHM, DENSITY, restore_rng=False), net()
        fit = trainer([updater, saver(tmp_path, 12)], max_epochs=3, enable_checkpointing=True)
        fit.fit(model, kind(), ckpt_path=start, **data)
        steps.append((fit.global_step, updater.sparsifier.steps))
    assert steps == [(36, 36)] * 2


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_dense_checkpoint_after_a_validated_sparse_one_starts_by_its_own_weights(tmp_path):
    keep = saver(tmp_path / "sparse", 2)
    trainer([MaskUpdater(SET(every=2), DENSITY), keep], max_steps=2, enable_checkpointing=True).fit(net(), loader())
    dense = saver(tmp_path / "dense", 2)
    trainer([dense], max_steps=2, enable_checkpointing=True).fit(net(seed=3), loader())
    updater, model = MaskUpdater(SET(every=20), DENSITY), net(seed=4)
    runner = trainer([updater], max_steps=2)
    runner.validate(model, loader(), ckpt_path=tmp_path / "sparse" / "step=2.ckpt")
    runner.fit(model, loader(), ckpt_path=tmp_path / "dense" / "step=2.ckpt")
    own = torch.load(tmp_path / "dense" / "step=2.ckpt", weights_only=True)["state_dict"]
    for name, mask in updater.masks.items():
        largest = own[name].abs().flatten().topk(int(mask.sum())).indices
        assert mask.flatten()[largest].all(), name
