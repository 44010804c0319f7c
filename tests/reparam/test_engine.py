"""Latent weights in plain loops: what is shown, saved, copied and stepped."""

import copy
import pickle

import pytest
import torch
from helpers import same, weights
from latents import LATENT, NETWORKS, SETTLING, batch, centre, close, leaks, loss_of, made, start, train, watch

from lightning_sparse import SRSTE, Block, Channel, FanIn


def midway(name, kind):
    """Four steps, and a gradient that waits for more."""
    model, optimizer, engine = start(LATENT[name], kind)
    train(model, optimizer, 4)
    optimizer.zero_grad()
    loss_of(model, 4).backward()
    return model, optimizer, engine


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", LATENT)
def test_state_dict_is_the_dense_models_with_the_effective_weights(name, kind):
    model, _, engine = midway(name, kind)
    dense, shown = made(kind).state_dict(), centre(engine)
    assert model.training
    for prefix, module in model.named_modules():  # of the whole and of each part
        loss_of(model, 5)  # under L0 a sample is shown again
        stored = module.state_dict(prefix=f"{prefix}." if prefix else "")
        assert [(k, v.shape) for k, v in stored.items()] == [(k, dense[k].shape) for k in dense if k in stored]
        for key in shown.keys() & stored.keys():
            close(stored[key], shown[key])
    assert set(model.state_dict()) == set(dense)
    assert set(dict(model.named_parameters())) == set(dict(made(kind).named_parameters()))


@pytest.mark.parametrize("name", LATENT)
def test_finalize_leaves_plain_weights(name):
    model, optimizer, engine = midway(name, "linear")
    shown = centre(engine)
    engine.finalize()
    for key, value in shown.items():
        close(model.get_parameter(key), value)
    parts = [part for part in model.modules() if part._forward_pre_hooks or part._state_dict_pre_hooks]
    assert (parts, [p for p in engine.params.values() if p.latent is not None or p.state]) == ([], [])
    before = leaks(engine)
    train(model, optimizer, 3)  # a plain model that nothing follows
    assert before == 0 < leaks(engine)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", SETTLING)
def test_no_forward_pass_sees_a_nonzero_weight_outside_the_mask(name, kind):
    model, optimizer, engine = start(SETTLING[name], kind)
    seen = watch(model, engine)
    for step in range(10):
        train(model, optimizer, 1, step)
        with torch.no_grad():
            model.eval()(batch(step))
            model.train()
    assert len(seen) >= 40
    assert set(seen) == {0}
    assert all(p.latent is None for p in engine.params.values()), "never settled: half of the promise was not looked at"
    assert engine.density() < 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", LATENT)
def test_a_copy_of_the_model_and_its_original_do_not_write_into_each_other(name, copied):
    model, optimizer, engine = start(LATENT[name])
    twin = start(LATENT[name])
    train(model, optimizer, 4)
    train(twin[0], twin[1], 4)
    other = copied(model)
    assert same(weights(other), weights(model))
    kept = weights(other)
    train(model, optimizer, 3, start=4)
    assert same(weights(other), kept)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 3)
    other.eval()(batch(0))
    assert not same(weights(other), kept)
    train(twin[0], twin[1], 3, start=4)
    assert same(weights(model), weights(twin[0])), "the copy's training has left something in the original"
    assert leaks(engine) == 0


@pytest.mark.parametrize("pattern", [Block(2, 4), Channel(), FanIn()], ids=str)
def test_srste_keeps_any_pattern_after_every_step(pattern):
    model, optimizer, engine = start(SRSTE(stop=9), pattern=pattern)
    planned, moved = {row.name: row.live for row in engine.plan.layers}, 0
    for step in range(12):
        before = engine.masks
        train(model, optimizer, 1, step)
        assert {name: int(m.sum()) for name, m in engine.masks.items()} == planned
        for p in engine.params.values():
            kind, rows = type(pattern).__name__, p.mask
            if kind == "Block":
                tiles = rows.view(p.mask.shape[0] // 2, 2, -1, 4)
                assert torch.equal(tiles.all(3).all(1), tiles.any(3).any(1))
            elif kind == "Channel":
                assert torch.equal(rows.all(1), rows.any(1))
            else:
                assert len(set(rows.sum(1).tolist())) == 1
        moved += not same(before, engine.masks)
        assert leaks(engine) == 0
    assert moved
