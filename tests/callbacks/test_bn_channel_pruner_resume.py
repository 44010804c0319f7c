"""Going on after channels have left: bit for bit, into a model as it was written."""

import pytest
import torch
from helpers import loader, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from pruned import Net, fit, net, pruner, widths

from lightning_sparse import MaskUpdater, RigL
from lightning_sparse.callbacks.load import load_from_checkpoint


def run(folder, *, start=None, seed=1, optimizer="adamw", data=None, others=(), keep=None, settings=None, **pruning):
    """Three epochs of twelve steps with dropout and shuffling; cuts after the first and the second."""
    cut = pruner(0.4, **{"at": [1, 2], **pruning})
    model = net(optimizer, 0.25, seed=seed)
    callbacks = [cut, *others, saver(folder, 4) if keep is None else keep]
    fit = trainer(callbacks, max_epochs=3, enable_checkpointing=True, **(settings or {}))
    fit.fit(model, loader(shuffle=True) if data is None else data, ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    return cut, model, state


def equal(left, right):
    (a, model, state), (b, other, second) = left, right
    same_cuts = [c.channels for c in a.history.cuts] == [c.channels for c in b.history.cuts]
    assert same_cuts
    assert widths(model) == widths(other)
    return same(weights(model), weights(other)) and same(state, second)


def more(*values):
    """Cases for the slow step: they differ little from those beside them."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("shrink", ["live", "never", "end"])
@pytest.mark.parametrize("step", [12, 24])
def test_it_goes_on_bit_for_bit_from_the_last_step_of_an_epoch_with_a_cut_to_come(step, shrink, tmp_path):
    whole = run(tmp_path, shrink=shrink)
    again = run(tmp_path, start=tmp_path / f"step={step}.ckpt", seed=7, shrink=shrink)
    assert len(whole[0].history.cuts) == 2
    assert equal(whole, again)


@pytest.mark.parametrize("shrink", ["live", "never", "end"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_it_goes_on_bit_for_bit_from_the_end_of_an_epoch_with_the_cut_made(epoch, shrink, tmp_path):
    def keep():
        return ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)

    whole = run(tmp_path, keep=keep(), shrink=shrink)
    saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
    assert saved["callbacks"]["lightning_sparse.BNChannelPruner"]["done"] == epoch + 1
    again = run(tmp_path, keep=keep(), start=tmp_path / f"epoch={epoch}.ckpt", seed=7, shrink=shrink)
    assert equal(whole, again)


@pytest.mark.parametrize("step", [4, 20, *more(8, 16, 28, 32)])
def test_it_goes_on_bit_for_bit_in_the_middle_of_an_epoch(step, tmp_path):
    whole = run(tmp_path, data=stateful(shuffle=True))
    again = run(tmp_path, data=stateful(shuffle=True), start=tmp_path / f"step={step}.ckpt", seed=7)
    assert equal(whole, again)


@pytest.mark.parametrize(
    "pruning",
    [
        {"penalty": "group_lasso", "l1": "auto"},
        {"criterion": "taylor", "at": None, "at_steps": [5, 18]},
        *more(
            {"penalty": "proximal", "l1": 1e-2},
            {"criterion": "activation"},
            {"target": "flops", "decay_gammas": False},
        ),
    ],
    ids=str,
)
def test_it_goes_on_bit_for_bit_whatever_the_settings(pruning, tmp_path):
    whole = run(tmp_path, data=stateful(shuffle=True), optimizer="sgd", **pruning)
    for step in (8, 24):
        start = tmp_path / f"step={step}.ckpt"
        again = run(tmp_path, data=stateful(shuffle=True), start=start, seed=7, optimizer="sgd", **pruning)
        assert equal(whole, again)


@pytest.mark.parametrize("step", [12, 16, *more(8, 24, 28)])
def test_masks_go_on_too(step, tmp_path):
    def both():
        return [MaskUpdater(RigL(every=3, stop=1.0), 0.5)]

    start = tmp_path / f"step={step}.ckpt"
    whole = run(tmp_path, data=stateful(shuffle=True), others=(first := both()))
    again = run(tmp_path, data=stateful(shuffle=True), others=(second := both()), start=start, seed=7)
    assert equal(whole, again)
    assert same(first[0].masks, second[0].masks)


def test_a_test_with_an_earlier_checkpoint_has_its_channels_again(tmp_path):
    cut, model = pruner(0.25, at=[1, 2]), net()
    fitted = trainer([cut, saver(tmp_path, 4)], max_epochs=3, enable_checkpointing=True)
    fitted.fit(model, loader())
    small = widths(model)
    for step in (4, 16, 32, 8):
        fitted.test(model, loader(), ckpt_path=tmp_path / f"step={step}.ckpt", verbose=False)
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert same(weights(model), saved)
        assert model(torch.zeros(2, 2, 6, 6)).shape == (2, 5)
        assert (widths(model) == (16, 8, 12)) is (step < 12)
        assert (widths(model) == small) is (step > 24)
    assert cut.done == 0
    fit(cut, model=model)  # and it is pruned anew from there
    assert sum(widths(model)) == 9


def test_a_fresh_model_and_callback_test_a_checkpoint_of_fewer_channels(tmp_path):
    run(tmp_path)
    model = net()
    trainer([pruner(0.4), saver(tmp_path, 4)], enable_checkpointing=True).test(
        model, loader(), ckpt_path=tmp_path / "step=32.ckpt", verbose=False
    )
    assert same(weights(model), torch.load(tmp_path / "step=32.ckpt", weights_only=True)["state_dict"])


def test_load_from_checkpoint_builds_the_smaller_model(tmp_path):
    _, small, _ = run(tmp_path)
    path = tmp_path / "step=36.ckpt"
    loaded = load_from_checkpoint(Net, path, hparams={"optimizer": "adamw", "dropout": 0.25})
    assert type(loaded) is Net
    assert loaded.optimizer == "adamw"
    assert widths(loaded) == widths(small)
    assert same(weights(loaded), weights(small))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Net.load_from_checkpoint(path)


def test_a_checkpoint_of_another_width_is_refused_before_anything_is_changed(tmp_path):
    run(tmp_path)
    for step in (8, 32):
        model = net(width=24)
        before = weights(model)
        with pytest.raises(ValueError, match=r"another model(.|\n)*stem.weight had shape \[16, 2, 3, 3\]"):
            trainer([pruner(0.4), saver(tmp_path, 4)], max_epochs=3, enable_checkpointing=True).fit(
                model, loader(), ckpt_path=tmp_path / f"step={step}.ckpt"
            )
        assert same(weights(model), before)
        with pytest.raises(ValueError, match="another model"):
            load_from_checkpoint(Net, tmp_path / f"step={step}.ckpt", hparams={"width": 24})


def test_a_checkpoint_of_a_run_without_pruning_starts_the_schedule(tmp_path):
    trainer([saver(tmp_path, 12)], max_epochs=2, enable_checkpointing=True).fit(net(), loader())
    cut, model = pruner(0.5, at=2), net(seed=5)
    trainer([cut, saver(tmp_path, 12)], max_epochs=3, enable_checkpointing=True).fit(
        model, loader(), ckpt_path=tmp_path / "step=12.ckpt"
    )
    assert sum(widths(model)) == 18


def test_weights_of_other_shapes_are_refused_within_a_fit(tmp_path):
    cut = pruner(0.5)
    dense = weights(net())
    class Loading(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                pl_module.load_state_dict(dense)

    with pytest.raises(ValueError, match="other shapes were loaded within a fit"):
        fit(cut, Loading())
