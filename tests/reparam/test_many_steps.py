"""Many steps: the same formulas, differentiated by autograd and stepped by torch's optimizers, train alike."""

import math

import pytest
import torch
from latents import close, gates, soft
from torch import nn

from lightning_sparse import L0, SRSTE, STR, Sparsifier, TopKAST

SGD = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.02}
SHAPES = [(5, 6), (3, 5)]


def straight(shown, through):
    """The value of ``shown`` with the gradient of ``through``."""
    return shown.detach() + through - through.detach()


def start(algorithm, density=None, schedule=None, second=None, clip=None):
    """Two layers under the engine, and the same two weights for autograd; a learning rate of its own for the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    first = [layer.weight.detach().clone().requires_grad_() for layer in (model[0], model[2])]
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": second or SGD["lr"]}]
    optimizer = torch.optim.SGD(groups, **SGD)
    rates = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    engine = Sparsifier(model, algorithm, density, optimizers=[optimizer])

    def step(n):
        optimizer.zero_grad()
        loss(n, model).backward()
        if clip:
            engine.stage(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if rates:
            rates.step()

    return engine, list(engine.params.values()), first, step


def loss(n, network):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(n))
    return (network(x) - x[:, :3]).square().mean()


def through(a, b):
    return lambda x: (x @ a.T).tanh() @ b.T


@pytest.mark.parametrize(("decay", "second", "clip"), [(None, 0.2, None), (0.1, 0.05, None), (None, 0.2, 0.1)])
def test_str_without_steering_is_the_authors_formulation(decay, second, clip):
    algorithm = STR(every=1, stop=1000, start=-3.0, decay=decay)
    engine, params, weights, step = start(algorithm, second=second, clip=clip)
    thresholds = [torch.tensor(-3.0, requires_grad=True) for _ in weights]
    own = {"weight_decay": SGD["weight_decay"] if decay is None else decay}
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (SGD["lr"], second), strict=True)]
    groups += [{"params": [s], "lr": lr, **own} for s, lr in zip(thresholds, (SGD["lr"], second), strict=True)]
    optimizer, clipped = torch.optim.SGD(groups, **SGD), 0
    for n in range(25):
        step(n)
        optimizer.zero_grad()
        shown = [soft(w, s) for w, s in zip(weights, thresholds, strict=True)]
        loss(n, through(*shown)).backward()
        if clip:  # the model's parameters are clipped; thresholds are none of them
            clipped += float(nn.utils.clip_grad_norm_(weights, clip)) > clip
        optimizer.step()
        for p, w, s in zip(params, weights, thresholds, strict=True):
            close(p.latent, w.detach())
            close(p.state["threshold"], s.detach())
            close(p.weight, soft(w, s).detach())
    assert clipped >= (5 if clip else 0)
    assert 0.02 < engine.density() < 0.9
    assert float(thresholds[0].detach()) != pytest.approx(-3.0, abs=0.02)


def test_l0_is_adam_on_the_gates_and_the_users_optimizer_on_the_weights():
    def schedule(n):
        return 1.0 if n < 12 else 0.25

    algorithm = L0(every=1, begin=900, stop=1000, lr=0.05, strength=0.01)
    _, params, weights, step = start(algorithm, 0.5, schedule)
    alphas = [p.state["log_alpha"].clone().requires_grad_() for p in params]
    noise = torch.rand(30, 45, generator=torch.Generator().manual_seed(3)).clamp(1e-6, 1 - 1e-6)
    for p, (i, j) in zip(params, ((0, 30), (30, 45)), strict=True):
        p.uniform = lambda salt="", shape=None, p=p, i=i, j=j: noise[p.step, i:j].view(shape).clone()
    optimizer, adam = torch.optim.SGD(weights, **SGD), torch.optim.Adam(alphas, lr=0.05)
    rates = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in (optimizer, adam)]
    for n in range(25):
        step(n)
        drawn = [noise[n + 1, :30].view(5, 6), noise[n + 1, 30:].view(3, 5)]
        zs = [gates(a, u) for a, u in zip(alphas, drawn, strict=True)]
        price = sum((a - 2 / 3 * math.log(0.1 / 1.1)).sigmoid().sum() for a in alphas)
        optimizer.zero_grad()
        adam.zero_grad()
        (loss(n, through(*(w * z for w, z in zip(weights, zs, strict=True)))) + 0.01 * price).backward()
        for each in (optimizer, adam, *rates):
            each.step()
        with torch.no_grad():
            for p, w, a in zip(params, weights, alphas, strict=True):
                a.clamp_(math.log(0.01), math.log(100))
                close(p.latent, w, atol=1e-5)
                close(p.state["log_alpha"], a, atol=1e-4)


def top(w, k):
    return torch.zeros(w.numel(), dtype=torch.bool).scatter(0, w.abs().flatten().topk(k).indices, True).view(w.shape)


def test_topkast_moves_what_is_in_its_backward_set_only():
    engine, params, weights, step = start(TopKAST(every=3, stop=1000, penalty=0.05), 0.3)
    counts, optimizer = [p.target for p in params], torch.optim.SGD(weights, **SGD)
    shares = [p.density for p in params]
    moved = 0
    for n in range(25):
        if n % 3 == 0:
            forward = [top(w.detach(), k) for w, k in zip(weights, counts, strict=True)]
            backward = [top(w.detach(), 2 * k) for w, k in zip(weights, counts, strict=True)]
        step(n)
        optimizer.zero_grad()
        shown = [straight(w * a, w * b) for w, a, b in zip(weights, forward, backward, strict=True)]
        sets = zip(weights, forward, backward, shares, strict=True)
        extra = sum((w * a).square().sum() + (w * (b & ~a)).square().sum() / d for w, a, b, d in sets)
        (loss(n, through(*shown)) + 0.05 / 2 * extra).backward()
        before = [w.detach().clone() for w in weights]
        optimizer.step()
        with torch.no_grad():
            for p, w, old, b in zip(params, weights, before, backward, strict=True):
                w.copy_(torch.where(b, w, old))  # its momentum and decay do not move the others
                close(p.latent, w)
                moved += int((w != old).sum())
    assert moved > 0
    assert any(not torch.equal(a, top(w.detach(), k)) for a, w, k in zip(forward, weights, counts, strict=True))
    assert engine.updates == 8


def test_srste_is_straight_through_with_a_decay_of_what_is_not_shown():
    _, params, weights, step = start(SRSTE(stop=1000, penalty=0.05), 0.4)
    counts, optimizer = [p.target for p in params], torch.optim.SGD(weights, **SGD)
    for n in range(25):
        masks = [top(w.detach(), k) for w, k in zip(weights, counts, strict=True)]
        step(n)
        optimizer.zero_grad()
        shown = [straight(w * m, w) for w, m in zip(weights, masks, strict=True)]
        extra = sum((w * ~m).square().sum() for w, m in zip(weights, masks, strict=True))
        (loss(n, through(*shown)) + 0.05 / 2 * extra).backward()
        optimizer.step()
        for p, w in zip(params, weights, strict=True):
            close(p.latent, w.detach())
