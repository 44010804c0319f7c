"""Runs of QuantizeSparse that go on, files that they leave, and models that lose channels on the way."""

import copy
import pickle

import pytest
import torch
from grids import on_grid
from helpers import loader, net, same, samples, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from pruned import net as residual
from pruned import pruner, widths

from lightning_sparse import MaskUpdater, QuantizeSparse, RigL
from lightning_sparse.quant.quantization import remembered
from lightning_sparse.quant.sites import find


def run(folder, start=None, seed=1, sparse=True, bits=4, **settings):
    """Four epochs of six steps, quantized from step 9 on, or from the first; ranges rest from step 21 or 18 on."""
    callbacks = [QuantizeSparse(bits, at=0.375 if sparse else 0)]
    callbacks += [MaskUpdater(RigL(every=2, stop=1.0), 0.25)] if sparse else []
    model = net("adamw", dropout=0.2, seed=seed)
    if not sparse and start is None:
        with torch.no_grad():
            model.net[4].weight[:, ::2] = 0
    fit = trainer([*callbacks, saver(folder, 3)], max_epochs=4, enable_checkpointing=True, **settings)
    fit.fit(model, stateful(8, shuffle=True), loader(24), ckpt_path=start)
    return model, fit, callbacks[0]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("step", [6, 12, 15, 21])
def test_a_resumed_run_ends_bit_for_bit(tmp_path, step, sparse):
    whole = run(tmp_path, sparse=sparse)
    again = run(tmp_path, tmp_path / f"step={step}.ckpt", seed=5, sparse=sparse)
    assert same(weights(whole[0]), weights(again[0]))
    assert same(state_tensors(whole[1].optimizers[0]), state_tensors(again[1].optimizers[0]))
    assert whole[2].quantization == again[2].quantization
    assert torch.equal(whole[1].callback_metrics["val_loss"], again[1].callback_metrics["val_loss"])
    if not sparse:
        assert not again[0].net[4].weight[:, ::2].any()
        assert again[0].net[4].weight[:, 1::2].all()


def last_epochs(folder, bits, start=None, seed=1):
    """Two epochs of six steps, saved at the end of each; below five bits quantized from step 9 on."""
    callbacks = [QuantizeSparse(bits), MaskUpdater(RigL(every=2, stop=1.0), 0.25)]
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    model = net("adamw", dropout=0.2, seed=seed)
    fit = trainer([*callbacks, saver(folder, 3), keep], max_epochs=2, enable_checkpointing=True)
    fit.fit(model, loader(8, shuffle=True) if "epoch" in str(start) else stateful(8, shuffle=True), ckpt_path=start)
    return model, callbacks[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("start", ["step=3", "step=9", "step=12", "epoch=1"])
def test_a_resumed_run_ends_with_the_same_integers(tmp_path, start, bits):
    """Also if it was calibrated at its end only, and where a last checkpoint leaves nothing to train."""
    whole = last_epochs(tmp_path, bits)
    again = last_epochs(tmp_path, bits, tmp_path / f"{start}.ckpt", seed=5)
    assert same(weights(whole[0]), weights(again[0]))
    assert whole[1].quantization == again[1].quantization
    assert remembered(again[0]) == again[1].quantization
    assert again[1].quantization.ranges
    assert whole[1].begun == again[1].begun == (12 if bits == 8 else 9)


def test_ranges_rest_for_the_last_quarter_of_the_quantized_steps(tmp_path):
    run(tmp_path)
    states = [
        torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["callbacks"]["lightning_sparse.QuantizeSparse"]
        for step in (18, 21, 24)
    ]
    assert [state["ranges"]["moving"] for state in states] == [True, False, False]
    assert not torch.equal(states[0]["ranges"]["ranges"], states[1]["ranges"]["ranges"])
    assert torch.equal(states[1]["ranges"]["ranges"], states[2]["ranges"]["ranges"])


def test_checkpoints_have_the_models_keys_and_float_weights(tmp_path):
    run(tmp_path)
    state = torch.load(tmp_path / "step=15.ckpt", weights_only=True)["state_dict"]
    assert list(state) == list(net().state_dict())
    assert not on_grid(state["net.4.weight"], 4)


def test_a_checkpoint_is_tested_with_its_own_ranges(tmp_path):
    _, _, first = run(tmp_path)
    fresh, model = QuantizeSparse(4, at=0.375), net(seed=9)
    others = [MaskUpdater(RigL(every=2, stop=1.0), 0.25), saver(tmp_path, 3)]
    one = trainer([fresh, *others], enable_checkpointing=True)
    one.test(model, loader(48), ckpt_path=tmp_path / "step=12.ckpt", verbose=False)
    assert fresh.quantization != first.quantization
    assert fresh.quantization.ranges.keys() == first.quantization.ranges.keys()
    (loss,) = one.test(model, loader(48), ckpt_path=tmp_path / "step=24.ckpt", verbose=False)
    assert fresh.quantization == first.quantization
    (plain,) = trainer().test(model, loader(48), verbose=False)
    assert loss["val_loss"] != plain["val_loss"]


def test_a_checkpoint_from_before_is_evaluated_with_the_ranges_of_the_fit(tmp_path):
    model, quantize = net(), QuantizeSparse()
    fit = trainer([quantize, saver(tmp_path, 3)], max_epochs=1, enable_checkpointing=True)
    fit.fit(model, loader(8))
    known = quantize.quantization
    fit.test(model, loader(48), ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    assert quantize.quantization == known
    assert not torch.equal(model.net[4].weight, net().net[4].weight)


def test_a_second_fit_begins_anew_and_a_longer_one_goes_on():
    quantize, model = QuantizeSparse(4, at=1), net()
    fit = trainer([quantize], max_epochs=2)
    fit.fit(model, loader(8))
    first = quantize.quantization
    fit.fit_loop.max_epochs = 3
    fit.fit(model, loader(8))
    assert quantize.begun == 6
    assert quantize.quantization != first
    trainer([quantize], max_epochs=2).fit(net(), loader(8))
    assert quantize.quantization == first


def test_copies_and_pickles_of_the_callback_know_the_quantization():
    quantize, model = QuantizeSparse(), net()
    trainer([quantize], max_epochs=1).fit(model, loader(8))
    for other in (copy.deepcopy(quantize), pickle.loads(pickle.dumps(quantize))):
        assert other.quantization == quantize.quantization


@pytest.mark.parametrize("at", [0, 1, 2])
def test_channels_leave_while_the_model_is_quantized(at):
    """Cut after the first epoch; then the integers are of the smaller model."""
    ends = []
    for quantize in (QuantizeSparse(4, at=at), None):
        model = residual("adamw")
        with torch.no_grad():
            model.block.conv1.weight[:, :, 0] = 0
        fit = trainer([each for each in (pruner(), quantize) if each], max_epochs=3)
        fit.fit(model, loader(), loader(24))
        ends.append(model)
        assert widths(model) < widths(residual())
        assert at > 0 or quantize is None or not model.block.conv1.weight[:, :, 0].any()
        if quantize is not None:
            codes = quantize.quantization.codes(model)
            shapes = {name: tuple(each.codes.shape) for name, each in codes.items()}
            assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters() if name in codes}
            assert len(shapes) == 5
            assert torch.equal(codes["block.conv1.weight"].codes == 0, model.block.conv1.weight == 0)
            assert quantize.quantization.layers["stem"].norm == "bn"


def test_places_and_ranges_outlive_a_cut():
    """What is found in the cut model anew is what was found before; the ranges of its places go on."""
    quantize, model = QuantizeSparse(4, at=0), residual("adamw")
    ends, starts, shapes = [], [], []

    class Notes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            starts.append(quantize.quantizer.state_dict()["ranges"])
            shapes.append(widths(model))

        def on_train_batch_end(self, trainer, pl_module, *_):
            ends.append(quantize.quantizer.state_dict()["ranges"])

    trainer([pruner(), Notes(), quantize], max_epochs=2).fit(model, loader())
    assert shapes[0] == shapes[11] > shapes[12] == shapes[-1]
    assert all(torch.equal(before, after) for before, after in zip(ends, starts[1:], strict=False))
    assert not torch.equal(starts[12], ends[12])
    layers = quantize.quantization.layers
    x = next(iter(loader()))[0]
    assert find(model, lambda: model(x), {name: layer.bits for name, layer in layers.items()}) == layers
    assert len({layer.input for layer in layers.values()}) == 5
    assert [layer.norm for layer in layers.values()] == ["bn", "block.bn1", "block.bn2", "bn3", None]


def test_monitors_begin_anew_when_quantized_training_begins():
    stopper = EarlyStopping("val_loss", patience=9)
    fit = trainer([stopper, QuantizeSparse(2, at=1, reset_monitors=True)], max_epochs=2)
    fit.fit(net(), loader(8), loader(24))
    assert torch.equal(stopper.best_score, fit.callback_metrics["val_loss"])


def test_the_user_s_data_is_not_begun(monkeypatch):
    """What ranges are calibrated by comes from copies: the loader's own sampler is asked once an epoch."""
    data, asked = loader(8, shuffle=True), []
    begin = type(data.sampler).__iter__
    monkeypatch.setattr(type(data.sampler), "__iter__", lambda self: asked.append(self) or begin(self))
    trainer([QuantizeSparse(4, at=1)], max_epochs=2).fit(net(), data)
    assert asked.count(data.sampler) == 2
    assert len(samples()) == 48
