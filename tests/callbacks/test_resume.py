"""Going on: from checkpoints, after a kill, with the same callback again."""

import pytest
import torch
from helpers import (
    DENSITY,
    LIVE,
    Recorder,
    digest,
    loader,
    net,
    same,
    saver,
    state_tensors,
    stateful,
    trainer,
    weights,
)
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sparse import GMP, SET, MaskUpdater, RigL, SparseMomentum, Static

MOVING = {"rigl": RigL(every=5, stop=1.0), "set": SET(every=5, stop=1.0), "momentum": SparseMomentum(every=5)}


def run(algorithm, folder, *, start=None, seed=1, optimizer="adamw", data=None, val=None, keep=None, **settings):
    """Three epochs of twelve steps with dropout and shuffling."""
    updater, model = MaskUpdater(algorithm, DENSITY), net(optimizer, 0.25, seed=seed)
    callbacks = [updater, saver(folder, 4) if keep is None else keep]
    fit = trainer(callbacks, **{"max_epochs": 3, "enable_checkpointing": True, **settings})
    fit.fit(model, loader(shuffle=True) if data is None else data, val, ckpt_path=start)
    return updater, model, {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}


def equal(left, right) -> bool:
    (a, model, state), (b, other, second) = left, right
    return same(a.masks, b.masks) and same(weights(model), weights(other)) and same(state, second)


@pytest.mark.parametrize("step", [12, 24])
@pytest.mark.parametrize("name", MOVING)
def test_a_plain_loader_goes_on_bit_for_bit_at_the_end_of_an_epoch(name, step, tmp_path):
    whole = run(MOVING[name], tmp_path)
    again = run(MOVING[name], tmp_path, start=tmp_path / f"step={step}.ckpt", seed=7)
    assert whole[0].sparsifier.updates >= 3
    assert equal(whole, again)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_goes_on_with_a_validation_loop_too(accumulate, tmp_path):
    def keep():
        return ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_top_k=-1)

    settings = {"accumulate_grad_batches": accumulate, "val": loader(8, 16)}
    whole = run(MOVING["rigl"], tmp_path, keep=keep(), **settings)
    again = run(MOVING["rigl"], tmp_path, keep=keep(), start=tmp_path / "epoch=1.ckpt", seed=7, **settings)
    assert equal(whole, again)


def test_it_goes_on_from_lightnings_own_checkpoint_at_the_end_of_an_epoch(tmp_path):
    def keep():
        return ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)

    whole = run(MOVING["rigl"], tmp_path, keep=keep(), data=loader(shuffle=True))
    start = tmp_path / "epoch=0.ckpt"
    again = run(MOVING["rigl"], tmp_path, keep=keep(), data=loader(shuffle=True), start=start, seed=7)
    assert equal(whole, again)


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs", "amsgrad", "mixing", "fused"])
def test_it_goes_on_with_every_optimizer(optimizer, tmp_path):
    whole = run(MOVING["rigl"], tmp_path, optimizer=optimizer, data=stateful(shuffle=True))
    start = tmp_path / "step=20.ckpt"
    again = run(MOVING["rigl"], tmp_path, optimizer=optimizer, data=stateful(shuffle=True), start=start, seed=7)
    assert equal(whole, again)


class Dice(Callback):
    """The global random state as each batch begins."""

    def __init__(self):
        self.states = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.states.append(torch.get_rng_state())


@pytest.mark.parametrize("restore", [True, False])
def test_random_states_come_back_only_where_they_are_asked_for(restore, tmp_path):
    dice = []
    for start, seed in ((None, 1), (tmp_path / "step=12.ckpt", 7)):
        dice.append(Dice())
        updater = MaskUpdater(Static(), DENSITY, restore_rng=restore)
        fit = trainer([updater, saver(tmp_path, 12), dice[-1]], max_epochs=2, enable_checkpointing=True)
        fit.fit(net(dropout=0.25, seed=seed), loader(), ckpt_path=start)
    whole, again = dice[0].states[12:], dice[1].states
    assert [torch.equal(a, b) for a, b in zip(whole, again, strict=True)] == [restore] * 12


def test_validation_with_a_checkpoint_then_a_fit_goes_on_with_its_masks(tmp_path):
    run(MOVING["rigl"], tmp_path)
    saved = torch.load(tmp_path / "step=20.ckpt", weights_only=True)["state_dict"]
    for method in ("validate", "test"):
        updater, model = MaskUpdater(Static(), DENSITY), net(seed=5)
        fit = trainer([updater, saver(tmp_path, 4)], max_epochs=1, enable_checkpointing=True)
        getattr(fit, method)(model, loader(8, 16), ckpt_path=tmp_path / "step=20.ckpt", verbose=False)
        assert same(weights(model), saved)  # looking changes nothing
        with pytest.warns(UserWarning, match="trained by RigL, Static goes on"):
            fit.fit(model, loader())
        found = {name: value != 0 for name, value in weights(model).items() if name in LIVE}
        assert not any(bool((found[name] & ~mask).any()) for name, mask in updater.masks.items())
        assert {name: int(mask.sum()) for name, mask in updater.masks.items()} == LIVE
        assert not any(bool((saved[name][~mask] != 0).any()) for name, mask in updater.masks.items())


def test_a_dense_checkpoint_starts_by_magnitude_and_says_so(tmp_path, caplog):
    keeping = {"max_epochs": 3, "enable_checkpointing": True}
    trainer([saver(tmp_path, 12)], **keeping).fit(net("adamw"), loader())
    dense = torch.load(tmp_path / "step=12.ckpt", weights_only=True)["state_dict"]
    updater, model = MaskUpdater(Static(), DENSITY), net("adamw", seed=5)
    recorder = Recorder(updater)
    with caplog.at_level("INFO"):
        fit = trainer([updater, recorder, saver(tmp_path, 12)], **keeping)
        fit.fit(model, loader(), ckpt_path=tmp_path / "step=12.ckpt")
    for name, k in LIVE.items():
        least = dense[name].abs().flatten().sort(descending=True).values[k - 1]
        assert torch.equal(updater.masks[name], dense[name].abs() >= least)
    assert (recorder.leaks, recorder.state_leaks, len(recorder.counts)) == (0, 0, 24)
    assert "dense" in caplog.text
    assert "largest" in caplog.text


@pytest.mark.parametrize("optimizer", ["lbfgs", "mixing"])
def test_the_history_of_a_dense_run_revives_no_dead_weight(optimizer, tmp_path):
    keeping = {"max_epochs": 2, "enable_checkpointing": True}
    trainer([saver(tmp_path, 12)], **keeping).fit(net(optimizer), loader())
    updater = MaskUpdater(Static(), DENSITY)
    recorder = Recorder(updater)
    fit = trainer([updater, recorder, saver(tmp_path, 12)], **keeping)
    fit.fit(net(optimizer), loader(), ckpt_path=tmp_path / "step=12.ckpt")
    assert recorder.forwards >= 36
    assert recorder.leaks == 0


def test_a_second_fit_keeps_the_masks_and_counts_steps_anew():
    updater, model = MaskUpdater(RigL(every=5, stop=1.0), DENSITY), net()
    recorder = Recorder(updater)
    trainer([updater], max_epochs=2).fit(model, loader())
    masks, before = {name: mask.clone() for name, mask in updater.masks.items()}, updater.sparsifier.updates
    again = Recorder(updater)
    trainer([updater, again], max_epochs=2).fit(model, loader())
    assert recorder.leaks == again.leaks == 0
    assert updater.sparsifier.steps == 24
    assert updater.sparsifier.updates == before + 4  # after steps 5, 10, 15 and 20
    assert again.moves >= 3
    assert not same(masks, updater.masks)
    assert again.masks[0] == digest(masks)


def test_one_trainer_that_fits_twice_goes_on():
    updater, model = MaskUpdater(SET(every=5, stop=100), DENSITY), net()
    recorder = Recorder(updater)
    fit = trainer([updater, recorder], max_epochs=1)
    fit.fit(model, loader())
    fit.fit_loop.max_epochs = 3
    fit.fit(model, loader())
    assert updater.sparsifier.steps == len(recorder.counts) == 36
    assert recorder.leaks == 0
    assert all(counts == LIVE for counts in recorder.counts)


def test_another_model_starts_with_masks_of_its_own():
    updater, first, second = MaskUpdater(MOVING["rigl"], DENSITY), net(), net(seed=2)
    fresh = MaskUpdater(MOVING["rigl"], DENSITY)
    trainer([updater], max_epochs=2).fit(first, loader())
    trainer([updater], max_epochs=2).fit(second, loader())
    other = net(seed=2)
    trainer([fresh], max_epochs=2).fit(other, loader())
    assert same(updater.masks, fresh.masks)
    assert same(weights(second), weights(other))


def test_another_model_in_the_same_trainer_starts_at_random_too(caplog):
    updater, fresh = MaskUpdater(Static(), DENSITY), MaskUpdater(Static(), DENSITY)
    fit = trainer([updater], max_epochs=1)
    fit.fit(net(), loader())
    fit.fit_loop.max_epochs = 2
    with caplog.at_level("INFO"):
        fit.fit(net(seed=2), loader())
    trainer([fresh], max_epochs=1).fit(net(seed=2), loader())
    assert same(updater.masks, fresh.masks)
    assert "checkpoint" not in caplog.text, "there was none"


def test_gmp_goes_on_along_its_ramp(tmp_path):
    whole = run(GMP(every=4, stop=24), tmp_path)
    again = run(GMP(every=4, stop=24), tmp_path, start=tmp_path / "step=12.ckpt", seed=7)
    assert equal(whole, again)
    assert {name: int(mask.sum()) for name, mask in again[0].masks.items()} == LIVE


def test_what_a_test_loads_into_one_model_is_not_for_the_next(tmp_path):
    updater = MaskUpdater(MOVING["rigl"], DENSITY)
    trainer([updater, saver(tmp_path, 12)], max_epochs=1, enable_checkpointing=True).fit(net(), loader())
    fit = trainer([updater, saver(tmp_path, 12)], max_epochs=1, enable_checkpointing=True)
    fit.test(net(), loader(), ckpt_path=tmp_path / "step=12.ckpt", verbose=False)
    fit.fit(net(seed=3), loader())
    fresh = MaskUpdater(MOVING["rigl"], DENSITY)
    trainer([fresh], max_epochs=1).fit(net(seed=3), loader())
    assert same(updater.masks, fresh.masks)


def test_masks_come_with_the_weights_that_a_test_loads(tmp_path):
    updater, model = MaskUpdater(MOVING["rigl"], DENSITY), net()
    fit = trainer([updater, saver(tmp_path, 4)], max_epochs=2, enable_checkpointing=True)
    fit.fit(model, loader())
    last = {name: mask.clone() for name, mask in updater.masks.items()}
    fit.test(model, loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    assert not same(updater.masks, last)
    found = weights(model)
    assert not any(bool((found[name][~mask] != 0).any()) for name, mask in updater.masks.items())


def test_a_ramp_that_is_not_done_is_not_taken_over_by_another_algorithm(tmp_path):
    gmp = MaskUpdater(GMP(every=2, stop=40), DENSITY)
    trainer([gmp, saver(tmp_path, 8)], max_epochs=4, enable_checkpointing=True).fit(net(), loader())
    again = trainer([MaskUpdater(Static(), DENSITY), saver(tmp_path, 8)], max_epochs=4, enable_checkpointing=True)
    with pytest.raises(ValueError, match="GMP was on its way"):
        again.fit(net(), loader(), ckpt_path=tmp_path / "step=8.ckpt")


def test_a_second_fit_zeroes_what_was_loaded_in_between():
    updater, model = MaskUpdater(MOVING["rigl"], DENSITY), net()
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    trainer([updater], max_epochs=1).fit(model, loader())
    model.load_state_dict(dense)
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(model, loader())
    assert recorder.leaks == 0


def test_a_trainer_that_goes_on_plans_for_its_new_length():
    updater, model = MaskUpdater(RigL(every=3), DENSITY), net()
    fit = trainer([updater], max_epochs=1)
    fit.fit(model, loader())
    first = updater.sparsifier.algorithm.stop
    fit.fit_loop.max_epochs = 3
    fit.fit(model, loader())
    assert updater.sparsifier.algorithm.stop > first
    assert updater.sparsifier.steps == 36
