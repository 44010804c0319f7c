"""Gradients that are not finite, and gradient scalers that skip steps."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from lightning_sparse import RigL, SparseMomentum, Sparsifier, Static
from lightning_sparse.core.schedules import ConstantSchedule

HALF = ConstantSchedule(0.5)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_of(model, step):
    x = torch.randn(8, 9, generator=torch.Generator().manual_seed(step))
    return (model(x) - x[:, :4]).square().mean()


def run(model, optimizer, sparsifier, steps, overflows=()):
    """A loop that stages, then repairs its gradients as clipping may; yields the number of updates after each step."""
    updates = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step in overflows:
            model[0].weight.grad.fill_(math.inf)
            sparsifier.stage(optimizer)
            for weight in model.parameters():
                weight.grad.nan_to_num_(0, 0, 0)
        optimizer.step()
        updates.append(sparsifier.updates)
    return updates


def test_an_update_on_a_gradient_that_is_not_finite_waits_for_the_next_step():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, RigL(every=2, stop=8), 0.3, optimizers=[optimizer])
    assert run(model, optimizer, sparsifier, 5, overflows=[2]) == [0, 0, 1, 2, 2]


def test_an_update_waits_as_long_as_gradients_are_not_finite():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, RigL(every=2, stop=8), 0.3, optimizers=[optimizer])
    assert run(model, optimizer, sparsifier, 5, overflows=[2, 3]) == [0, 0, 0, 1, 1]


def test_a_large_float16_gradient_is_finite():
    model = nn.Linear(9, 12).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    sparsifier = Sparsifier(model, RigL(every=2, stop=8), 0.3, optimizers=[optimizer])
    for _ in range(2):
        model.weight.grad = torch.full_like(model.weight, 1000.0)  # 108 entries: their sum is 108,000
        optimizer.step()
    assert sparsifier.updates == 1


def test_an_average_of_gradients_survives_one_that_is_not_finite():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, SparseMomentum(every=2, stop=8), 0.3, optimizers=[optimizer])
    run(model, optimizer, sparsifier, 3, overflows=[1])
    assert all(p.state["momentum"].isfinite().all() for p in sparsifier.params.values())


def test_a_dead_weight_stays_zero_when_its_own_gradient_overflows():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, Static(), 0.3, optimizers=[optimizer])
    dead = ~sparsifier.masks["0.weight"]
    loss_of(model, 0).backward()
    model[0].weight.grad[dead] = math.inf
    optimizer.step()
    assert (model[0].weight[dead] == 0).all()


@dataclass(frozen=True)
class Watched(RigL):
    """RigL that keeps the gradients it grew from."""

    seen: list = field(default_factory=list)

    def grow_score(self, p):
        self.seen.append((p.name, p.grad.clone()))
        return super().grow_score(p)


SCALED = {
    "sgd": lambda w: torch.optim.SGD(w, lr=1e-5, momentum=0.9),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01),
    "fused sgd": lambda w: torch.optim.SGD(w, lr=1e-5, fused=True),  # torch's own momentum is garbage after a skip
    "fused adamw": lambda w: torch.optim.AdamW(w, lr=0.01, fused=True),
}


def scaled_run(model, optimizer, scaler, steps):
    """Trains under a gradient scaler; returns which steps it took and the true dense gradients of each."""
    taken, gradients = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step) * 1000
        true = torch.autograd.grad(loss, [model[0].weight, model[2].weight], retain_graph=True)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            taken.append(step)
            gradients.append(dict(zip(("0.weight", "2.weight"), true, strict=True)))
    return taken, gradients


@pytest.mark.parametrize("kind", SCALED)
def test_a_scaler_that_skips_steps_is_neither_counted_nor_grown_from(kind):
    model = net()
    optimizer = SCALED[kind](model.parameters())
    algorithm = Watched(every=2, stop=100, fraction=HALF)
    sparsifier = Sparsifier(model, algorithm, 0.3, optimizers=[optimizer])
    masks = sparsifier.masks
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
    taken, gradients = scaled_run(model, optimizer, scaler, 40)
    assert len(taken) < 40  # it did skip
    assert len(taken) > 10
    assert sparsifier.steps == len(taken)
    assert sparsifier.updates == len(taken) // 2
    assert len(algorithm.seen) == 2 * sparsifier.updates
    for i, (name, seen) in enumerate(algorithm.seen):  # two layers an update, updates after steps 2, 4, ...
        true = gradients[2 * (i // 2) + 1][name]
        torch.testing.assert_close(seen, true, rtol=1e-4, atol=1e-4 * float(true.abs().max()))
    for name, mask in sparsifier.masks.items():
        assert not torch.equal(mask, masks[name])
        assert (model.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize("kind", SCALED)
def test_a_skipped_step_changes_no_weight_and_no_mask(kind):
    model = net()
    optimizer = SCALED[kind](model.parameters())
    sparsifier = Sparsifier(model, RigL(every=1, stop=100, fraction=HALF), 0.3, optimizers=[optimizer])
    before, masks = {k: v.clone() for k, v in model.state_dict().items()}, sparsifier.masks
    taken, _ = scaled_run(model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**127), 1)
    assert taken == []
    assert (sparsifier.steps, sparsifier.updates) == (0, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_what_was_staged_for_a_skipped_step_is_not_used_for_the_next():
    model = net()
    optimizer = sgd(model)
    algorithm = Watched(every=1, stop=100, fraction=HALF)
    sparsifier = Sparsifier(model, algorithm, 0.3, optimizers=[optimizer])
    loss_of(model, 0).backward()
    model[0].weight.grad.fill_(math.inf)
    sparsifier.stage(optimizer)  # and no step
    sparsifier.discard()
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    true = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(algorithm.seen[0][1], true)
