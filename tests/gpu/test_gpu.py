"""Promises that only a CUDA device can test. Run with `pytest -m gpu tests/gpu` where there is one."""

import copy
import time
from statistics import median

import pytest
import torch
from torch import nn

from lightning_sparse import GMP, SET, RigL, SparseMomentum, Sparsifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


def make(optimizer="sgd", algorithm=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    return model, stepper, Sparsifier(model, algorithm or RigL(every=3, stop=60), 0.1, optimizers=[stepper])


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(32, 64, generator=generator).cuda(), torch.randint(10, (32,), generator=generator).cuda()


def loss_of(model, step):
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def dead_weights(sparsifier):
    return sum(int((p.weight.ne(0) & ~p.mask).sum()) for p in sparsifier.params.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dead_weights_and_their_state_stay_zero(optimizer):
    model, stepper, sparsifier = make(optimizer)
    planned = {row.name: row.live for row in sparsifier.plan.layers}
    train(model, stepper, range(12))
    assert sparsifier.updates == 4
    assert dead_weights(sparsifier) == 0
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == planned
    for p in sparsifier.params.values():
        for value in stepper.state[p.place.weight].values():
            if torch.is_tensor(value) and value.shape == p.mask.shape:
                assert int((value.ne(0) & ~p.mask).sum()) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw-fused"])
def test_a_step_that_the_scaler_skips_is_no_step(optimizer):
    model, stepper, sparsifier = make(optimizer, RigL(every=1, stop=60))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)  # far too large: the first steps overflow
    skipped = 0
    for step in range(60):
        before = [w.detach().clone() for w in model.parameters()]
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_of(model, step)
        stepper.zero_grad()
        scaler.scale(loss).backward()
        steps = sparsifier.steps
        scaler.step(stepper)
        scaler.update()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        skipped += same
        assert sparsifier.steps == steps + (not same)
    assert 1 <= skipped < 60
    assert dead_weights(sparsifier) == 0
    assert all(torch.isfinite(w).all() for w in model.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_step_does_not_wait_for_the_device(optimizer):
    model, stepper, _ = make(optimizer, SET(every=1000, stop=2000))
    train(model, stepper, range(3))
    prepared = batch(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.zero_grad()
        nn.functional.cross_entropy(model(prepared[0]), prepared[1]).backward()
        stepper.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algorithm", [RigL(3, 60), SET(every=3, stop=60), SparseMomentum(3, 60), GMP(3, 60)])
def test_resume_is_bit_exact(algorithm):
    straight, stepper, whole = make("adamw", algorithm)
    train(straight, stepper, range(8))
    saved = copy.deepcopy((straight.state_dict(), stepper.state_dict(), whole.state_dict()))
    train(straight, stepper, range(8, 20))
    resumed, other, again = make("adamw", algorithm)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    train(resumed, other, range(8, 20))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(again.masks[name], mask) for name, mask in whole.masks.items())


def test_masks_are_those_of_the_cpu():
    model = nn.Linear(64, 128)
    host = Sparsifier(copy.deepcopy(model), SET(), 0.1, total_steps=100)
    device = Sparsifier(model.cuda(), SET(), 0.1, total_steps=100)
    assert torch.equal(host.masks["weight"], device.masks["weight"].cpu())


def test_overhead_is_printed(capsys):
    """No bound: a timed test would lie on a busy device. The figure is what a person looks at."""
    seconds = {}
    for name in ("dense", "sparse"):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(8)]).cuda()
        stepper = torch.optim.AdamW(model.parameters(), fused=True)
        if name == "sparse":
            keep = Sparsifier(model, RigL(every=10**6, stop=10**7), 0.1, optimizers=[stepper])
            assert keep.updates == 0
        x, times = torch.randn(512, 2048, device="cuda"), []
        for _ in range(30):
            torch.cuda.synchronize()
            start = time.perf_counter()
            stepper.zero_grad()
            model(x).square().mean().backward()
            stepper.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds[name] = median(times[5:])
    with capsys.disabled():
        ratio = seconds["sparse"] / seconds["dense"]
        print(f"\n{torch.cuda.get_device_name()}: sparse step / dense step = {ratio:.3f}")
    assert seconds["sparse"] > 0
