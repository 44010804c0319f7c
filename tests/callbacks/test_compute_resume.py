"""Checkpoints of compute="sparse" are the dense model's: runs go on from them in either way."""

import pytest
import torch
from helpers import DENSITY, loader, net, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sparse import GMP, SET, MaskUpdater, RigL, Static

MOVING = {"rigl": RigL(every=4, stop=1.0), "set": SET(every=4, stop=1.0), "gmp": GMP(every=4), "static": Static()}


def run(algorithm, compute, folder, *, start=None, seed=1, optimizer="adamw", data=None, **settings):
    """Two epochs of twelve steps with dropout and shuffling, in float64."""
    updater, model = MaskUpdater(algorithm, DENSITY, compute=compute), net(optimizer, 0.25, seed=seed)
    model.double()  # Lightning would do so after it has read a checkpoint, into float32
    own = {"max_epochs": 2, "precision": "64-true", "enable_checkpointing": True}
    fit = trainer([updater, saver(folder, 6)], **{**own, **settings})
    fit.fit(model, stateful(shuffle=True) if data is None else data, ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    return updater.masks, weights(model), state


RUNS = [("rigl", optimizer, 18) for optimizer in ("adamw", "sgd", "lbfgs", "fused", "amsgrad")]
RUNS += [("gmp", "adamw", 6), ("gmp", "lbfgs", 18), ("rigl", "adamw", 12)]


@pytest.mark.parametrize(("name", "optimizer", "step"), RUNS)
def test_a_sparse_run_goes_on_bit_for_bit(name, optimizer, step, tmp_path):
    whole = run(MOVING[name], "sparse", tmp_path, optimizer=optimizer)
    start = tmp_path / f"step={step}.ckpt"
    again = run(MOVING[name], "sparse", tmp_path, optimizer=optimizer, start=start, seed=7)
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize(("name", "optimizer"), [*((name, "adamw") for name in MOVING), ("rigl", "lbfgs")])
@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_the_way_of_computing_may_change_between_runs(first, name, optimizer, tmp_path):
    other = {"sparse": "dense", "dense": "sparse"}[first]
    whole = run(MOVING[name], first, tmp_path, optimizer=optimizer)
    again = run(MOVING[name], other, tmp_path, optimizer=optimizer, start=tmp_path / "step=12.ckpt", seed=7)
    assert same(whole[0], again[0])
    for ours, theirs in zip(whole[1:], again[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def keys(part):
    """Names and shapes in nested containers."""
    if isinstance(part, torch.Tensor):
        return tuple(part.shape)
    if isinstance(part, dict):
        return {key: keys(value) for key, value in part.items()}
    return [keys(value) for value in part] if isinstance(part, list) else type(part)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
def test_checkpoints_hold_the_names_and_shapes_of_the_dense_model(optimizer, tmp_path):
    saved = {}
    for compute in ("sparse", "dense"):
        run(MOVING["rigl"], compute, tmp_path / compute, optimizer=optimizer)
        saved[compute] = torch.load(tmp_path / compute / "step=18.ckpt", weights_only=True)
    for part in ("state_dict", "optimizer_states", "callbacks"):
        ours, theirs = keys(saved["sparse"][part]), keys(saved["dense"][part])
        if part == "callbacks":
            ours, theirs = (each["lightning_sparse.MaskUpdater"] for each in (ours, theirs))
        assert ours == theirs, part
    plain = net(optimizer)
    plain.load_state_dict(saved["sparse"]["state_dict"])
    plain.configure_optimizers().load_state_dict(saved["sparse"]["optimizer_states"][0])
    assert 390 <= int(plain.net[4].weight.count_nonzero()) <= 398  # one that was grown may not have learned yet


def test_checkpoints_of_weights_only_and_after_the_fit_are_dense_too(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_weights_only=True)
    fit = trainer([MaskUpdater("rigl", DENSITY, compute="sparse"), keep], max_epochs=1, enable_checkpointing=True)
    fit.fit(net("adamw"), loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    for name in ("epoch=0", "end"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert saved["state_dict"]["net.4.weight"].shape == (20, 96)
    assert saved["optimizer_states"][0]["state"][2]["exp_avg"].shape == (20, 96)


def test_a_fit_after_a_test_of_a_checkpoint_goes_on_from_its_masks(tmp_path):
    ends = []
    for compute in ("sparse", "dense"):
        updater, model = MaskUpdater(MOVING["rigl"], DENSITY, compute=compute), net("adamw").double()
        settings = {"max_epochs": 1, "precision": "64-true", "enable_checkpointing": True}
        fit = trainer([updater, saver(tmp_path / compute, 6)], **settings)
        fit.fit(model, loader())
        fit.test(model, loader(), ckpt_path=tmp_path / compute / "step=6.ckpt", verbose=False)
        middle = updater.masks
        trainer([updater], max_epochs=1, precision="64-true").fit(model, loader())
        ends.append((middle, updater.masks, weights(model)))
    assert same(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])
    assert not same(ends[0][0], ends[0][1])
    torch.testing.assert_close(ends[0][2], ends[1][2], rtol=1e-9, atol=1e-12)
