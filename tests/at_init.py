"""Small networks and data for algorithms that choose masks before training, and how a refusal is looked at."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sparse import Sparsifier

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def cost(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def net(*between):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 30), *between, nn.ReLU(), nn.Linear(30, 3))


def engine(algorithm, model=None, batches=((X, Y),), loss=cost, density=0.2, inputs=X[:1], **settings):
    data = {"batches": batches, "loss": loss, "example_inputs": inputs}
    return Sparsifier(net() if model is None else model, algorithm, density, **data, **settings)


def refused(words, algorithm, model=None, error=ValueError, **settings):
    """The message has the words, and the model is as before: weights, hooks, modes."""
    model = net() if model is None else model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(error) as found:
        engine(algorithm, model, **settings)
    assert [word for word in words if word not in str(found.value)] == [], str(found.value)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(not module._forward_hooks and module.training for module in model.modules())
    assert all(value.grad is None for value in model.parameters())
