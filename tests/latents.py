"""What the tests of latent weights share: layers for tables, networks of every kind, and a look at what is shown."""

import pytest
import torch
from tables import param
from torch import nn

from lightning_sparse import L0, SRSTE, STR, Sparsifier, TopKAST

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
NEVER = 1000  # an end that no test reaches: weights stay latent
LATENT = {
    "str": STR(every=3, stop=NEVER, start=-5.0),
    "l0": L0(every=3, begin=0, stop=NEVER, lr=0.05),
    "l0_unit": L0(every=3, begin=0, stop=NEVER, lr=0.05, gates="unit"),
    "topkast": TopKAST(every=3, stop=NEVER),
    "srste": SRSTE(stop=NEVER),
}
SETTLING = {
    "str": STR(every=3, stop=7),
    "l0": L0(every=3, begin=0, stop=7, lr=0.05),
    "topkast": TopKAST(every=3, stop=7),
    "srste": SRSTE(stop=7),
}


def defect(reason, raises=AssertionError):
    """Marks a test that says what should be, and fails until it is."""
    return pytest.mark.xfail(strict=True, raises=raises, reason=reason)


def latent(weight, algorithm, *, target=None, free=False, name="w", module=None, scope="layer"):
    """A layer whose latent weights are these, all of it live."""
    weight = torch.tensor(weight, dtype=torch.float32)
    mask = torch.ones_like(weight, dtype=torch.bool)
    p = param(weight, mask, name=name, target=target, module=module, scope=scope)
    p.free, p.latent = free, weight.clone()
    algorithm.prepare([p])
    return p


def close(found, expected, atol=1e-6):
    torch.testing.assert_close(torch.as_tensor(found).float(), torch.as_tensor(expected).float(), atol=atol, rtol=0)


def soft(w, s):
    """STR, as an expression that autograd can differentiate."""
    return w.sign() * (w.abs() - s.sigmoid()).relu()


def gates(log_alpha, u):
    """Hard concrete gates, as an expression that autograd can differentiate."""
    s = ((u.log() - (1 - u).log() + log_alpha) / (2 / 3)).sigmoid()
    return (s * 1.2 - 0.1).clamp(0, 1)


def centre(engine):
    """The effective weights by their definition, from what the engine keeps; of L0, without noise."""
    found = {}
    for name, p in engine.params.items():
        if "log_alpha" in p.state:
            shown = p.latent * (torch.sigmoid(p.state["log_alpha"]) * 1.2 - 0.1).clamp(0, 1)
        elif "threshold" in p.state:
            shown = p.latent.sign() * (p.latent.abs() - torch.sigmoid(p.state["threshold"])).clamp(min=0)
        else:
            shown = p.latent
        found[name] = torch.where(p.mask, shown, 0.0)
    return found


def leaks(engine):
    """Weights outside the masks that are not zero."""
    return sum(int((~(p.weight[~p.mask] == 0)).sum()) for p in engine.params.values())


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Attending(nn.Module):
    """Attention, whose ``out_proj`` is never called as a module."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 8)

    def forward(self, x):
        return self.head(self.memory(x)[0])


class Convolving(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 1, 3))

    def forward(self, x):
        return self.net(x[:, None])[:, 0]


def linear():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


NETWORKS = {"linear": linear, "conv": Convolving, "attention": Attending, "lstm": Recurrent, "tied": Tied}


def batch(step):
    """Four sequences of five times eight numbers, which depend on the step alone."""
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(step))


def loss_of(model, step):
    return (model(batch(step)) - 0.5).square().mean()


def train(model, optimizer, n, start=0):
    """Plain steps."""
    for step in range(start, start + n):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def made(kind, seed=0):
    torch.manual_seed(seed)
    return NETWORKS[kind]()


def start(algorithm, kind="linear", optimizer=None, density=0.4, **settings):
    """A network, its optimizer, and the engine that follows it."""
    model = made(kind)
    stepper = torch.optim.SGD(model.parameters(), **SGD) if optimizer is None else optimizer(model.parameters())
    engine = Sparsifier(model, algorithm, density, optimizers=[stepper], seed=3, **settings)
    return model, stepper, engine


def watch(model, engine):
    """Counts what leaks into forward passes, before and after each."""
    seen = []
    for part in model.modules():
        part.register_forward_pre_hook(lambda *_: seen.append(leaks(engine)))
        part.register_forward_hook(lambda *_: seen.append(leaks(engine)))
    return seen
