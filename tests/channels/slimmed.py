"""A model that slim cuts, its data, and what it must leave alone."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """A residual convolutional network, with what a user's module may have."""

    def __init__(self, width=16, norm=True):
        super().__init__()
        make = nn.BatchNorm2d if norm else (lambda n: nn.Identity())
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), make(width)
        self.inner, self.inner_norm = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), make(2 * width)
        self.outer = nn.Conv2d(2 * width, width, 1)
        self.drop, self.head = nn.Dropout(), nn.Linear(width, 5)

    def forward(self, x, *, scale=1.0):
        x = self.norm(self.stem(x))
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        return self.head(self.drop(x.mean((2, 3)))) * scale


def inputs(batch=4):
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def data():
    return [(inputs(), torch.tensor([0, 1, 2, 3])), (inputs(3), torch.tensor([4, 0, 1]))]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def widths(model):
    return model.stem.out_channels, model.inner.out_channels


def snapshot(model):
    """All that could change: content, identity, gradients, modes, attributes, hooks, the random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {n: (id(t), t.detach().clone(), t.requires_grad, t.grad) for n, t in tensors.items()},
        {
            n: {k: v for k, v in vars(m).items() if isinstance(v, (int, tuple, str))} | {"hooks": len(m._forward_hooks)}
            for n, m in model.named_modules()
        },
        torch.get_rng_state(),
    )


def same(one, other):
    tensors, attributes, state = one
    now, others, random = other
    assert attributes == others
    assert torch.equal(state, random)
    assert tensors.keys() == now.keys()
    for name, (where, value, trained, gradient) in tensors.items():
        assert (where, trained) == (now[name][0], now[name][2]), name
        assert torch.equal(value, now[name][1]), name
        assert gradient is now[name][3], name
