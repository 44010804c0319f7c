"""What every algorithm promises in a plain PyTorch loop."""

from itertools import pairwise

import pytest
import torch
from contract import ACCUMULATED, BATCH, CASES, EPOCHS, OPTIMIZERS, SAMPLES, loop, matrix
from helpers import DENSITY, digest, loader, net, same, trainer, weights
from torch.nn import functional as F

from lightning_sparse import MaskUpdater

MOVING = [name for name, case in CASES.items() if case.moves]
NEEDS_GRADIENT = [n for n in MOVING if CASES[n].algorithm.planned(28, 14).needs_gradient(3) and not CASES[n].latent]
INF = float("inf")


@pytest.mark.parametrize(("name", "optimizer", "accumulate"), matrix(OPTIMIZERS, ACCUMULATED))
def test_a_raw_loop_gives_the_weights_of_the_trainer_bit_for_bit(name, optimizer, accumulate):
    updater, model = MaskUpdater(CASES[name].algorithm, DENSITY), net(optimizer)
    fit = trainer([updater], max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    fit.fit(model, loader(BATCH, SAMPLES))
    raw = loop(name, optimizer, accumulate)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(loader(BATCH, SAMPLES)):
            (F.cross_entropy(raw.model.net(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                raw.optimizer.step()
                raw.optimizer.zero_grad()
    assert same(raw.sparsifier.masks, updater.masks)
    assert same(weights(raw.model), weights(model))


def scaled_steps(raw, scaler, *, bad: int, stage: bool):
    """Masks, weights and step counts after each of six attempts; the gradients of attempt ``bad`` overflow."""
    seen = []
    for attempt, (x, y) in zip(range(1, 7), loader(BATCH, SAMPLES), strict=False):
        raw.optimizer.zero_grad()
        loss = F.cross_entropy(raw.model.net(x), y) * (INF if attempt == bad else 1.0)
        scaler.scale(loss).backward()
        if stage:
            scaler.unscale_(raw.optimizer)
            raw.sparsifier.stage(raw.optimizer)
        scaler.step(raw.optimizer)
        scaler.update()
        seen.append((digest(raw.sparsifier.masks), digest(weights(raw.model)), raw.sparsifier.steps))
    return seen


SCALED = matrix(("sgd", "adamw", "fused"), ("plain", "staged by hand"))


@pytest.mark.parametrize(("name", "optimizer", "stage"), SCALED)
def test_a_step_that_the_scaler_skips_is_not_counted_and_moves_nothing(name, optimizer, stage):
    raw = loop(name, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = scaled_steps(raw, scaler, bad=3, stage=stage == "staged by hand")
    assert [steps for *_, steps in seen] == [1, 2, 2, 3, 4, 5]
    assert seen[2] == seen[1]
    assert (seen[3][0] != seen[1][0]) == CASES[name].moves  # the update of step 3 comes one attempt later


def clipped_steps(raw, *, bad: int):
    """Masks after each of six steps; one live weight's gradient overflows in step ``bad`` and is clipped by value."""
    seen = []
    for step, (x, y) in zip(range(1, 7), loader(BATCH, SAMPLES), strict=False):
        raw.optimizer.zero_grad()
        F.cross_entropy(raw.model.net(x), y).backward()
        weight = raw.model.net[4].weight
        if step == bad:
            weight.grad[tuple(raw.sparsifier.masks["net.4.weight"].nonzero()[0])] = INF
        raw.sparsifier.stage(raw.optimizer)
        for gradient in [w.grad for w in raw.model.parameters() if w.grad is not None]:
            gradient.clamp_(-0.5, 0.5)
        raw.optimizer.step()
        seen.append(digest(raw.sparsifier.masks))
    return seen


@pytest.mark.parametrize("name", NEEDS_GRADIENT)
def test_an_update_whose_gradient_overflows_comes_after_the_next_finite_step(name):
    raw = loop(name, "sgd")
    before = digest(raw.sparsifier.masks)
    seen = clipped_steps(raw, bad=3)
    assert seen[:3] == [before] * 3
    assert seen[3] != before
    assert seen[4] == seen[3]
    assert seen[5] != seen[4]  # and the next one is on time


def test_one_overflow_does_not_spoil_the_momentum_for_good():
    raw = loop("sparse_momentum", "sgd")
    clipped_steps(raw, bad=2)
    assert all(bool(p.state["momentum"].isfinite().all()) for p in raw.sparsifier.params.values())


def test_a_loaded_state_leaves_the_optimizer_followed():
    raw = loop("rigl", "sgd")
    raw.sparsifier.load_state_dict(raw.sparsifier.state_dict())
    for x, y in loader(BATCH, SAMPLES):
        raw.optimizer.zero_grad()
        F.cross_entropy(raw.model.net(x), y).backward()
        raw.optimizer.step()
    dead = sum(int((raw.model.state_dict()[name][~mask] != 0).sum()) for name, mask in raw.sparsifier.masks.items())
    assert (raw.sparsifier.steps, dead) == (SAMPLES // BATCH, 0)


@pytest.mark.parametrize("name", ["static", "rigl", "gmp"])
def test_an_overflow_at_a_dead_weight_harms_no_live_one(name):
    raw = loop(name, "sgd")
    for step, (x, y) in enumerate(loader(BATCH, SAMPLES), start=1):
        raw.optimizer.zero_grad()
        F.cross_entropy(raw.model.net(x), y).backward()
        if step == 5:
            dead = (~raw.sparsifier.masks["net.4.weight"]).nonzero()[0]
            raw.model.net[4].weight.grad[tuple(dead)] = INF
        raw.optimizer.step()
    assert all(bool(w.isfinite().all()) for w in raw.model.parameters())


def test_staging_twice_keeps_the_dense_gradient():
    once, twice = loop("rigl", "sgd"), loop("rigl", "sgd")
    for x, y in loader(BATCH, 12):
        for each in (once, twice):
            each.optimizer.zero_grad()
            F.cross_entropy(each.model.net(x), y).backward()
            each.sparsifier.stage(each.optimizer)
        twice.sparsifier.stage(twice.optimizer)
        for each in (once, twice):
            each.optimizer.step()
    assert once.sparsifier.updates == 1
    assert same(once.sparsifier.masks, twice.sparsifier.masks)


# LBFGS with replaced steps is refused, which is tested with the errors.
CLOSURES = [(n, o) for n in MOVING for o in ("lbfgs", "sgd") if (n, o) != ("rigl_replace_step", "lbfgs")]


@pytest.mark.parametrize(("name", "optimizer"), CLOSURES)
def test_a_closure_is_masked_each_time_it_is_called(name, optimizer):
    raw = loop(name, optimizer)
    seen, masks = [], [digest(raw.sparsifier.masks)]
    for x, y in loader(BATCH, SAMPLES):

        def closure(x=x, y=y):
            named = dict(raw.model.named_parameters())
            seen.append(sum(int(named[n][~m].count_nonzero()) for n, m in raw.sparsifier.masks.items()))
            raw.optimizer.zero_grad()
            loss = F.cross_entropy(raw.model.net(x), y)
            loss.backward()
            return loss

        raw.optimizer.step(closure)
        masks.append(digest(raw.sparsifier.masks))
    assert len(seen) >= SAMPLES // BATCH * (2 if optimizer == "lbfgs" else 1)
    assert set(seen) == {0}
    assert sum(a != b for a, b in pairwise(masks)) >= 3
