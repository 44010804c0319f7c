"""A zero of dead state keeps its sign when an engine goes on from a checkpoint: bit for bit means the sign too."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_sparse import Sparsifier, Static

OPTIMIZERS = {  # both leave -0.0 where the masked gradient is 0: LBFGS by going against it, SGD by maximizing
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, maximize=True),
}


def made(name):
    torch.manual_seed(1)
    net = nn.Linear(6, 4)
    return net, OPTIMIZERS[name](net.parameters())


def train(net, optimizer, steps):
    x = torch.linspace(-1, 1, 30).view(5, 6)

    def closure():
        optimizer.zero_grad()
        loss = (net(x) - x[:, :4].sin()).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def bits(value) -> list[int]:
    """Of every float tensor in nested containers."""
    if isinstance(value, dict):
        return [bit for part in value.values() for bit in bits(part)]
    if isinstance(value, list):
        return [bit for part in value for bit in bits(part)]
    return value.flatten().view(torch.int32).tolist() if isinstance(value, Tensor) else []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_engine_leaves_the_signs_of_zeros_alone(name):
    net, optimizer = made(name)
    engine = Sparsifier(net, Static(), 0.25, optimizers=[optimizer])
    train(net, optimizer, 2)
    saved = [copy.deepcopy(part.state_dict()) for part in (net, optimizer, engine)]
    assert -(2**31) in bits(saved[1])  # -0.0
    train(net, optimizer, 2)
    again, stepper = made(name)
    again.load_state_dict(saved[0])
    stepper.load_state_dict(saved[1])
    Sparsifier(again, Static(), 0.25, optimizers=[stepper], state=saved[2])
    train(again, stepper, 2)
    assert bits(stepper.state_dict()["state"]) == bits(optimizer.state_dict()["state"])
    assert bits(again.state_dict()) == bits(net.state_dict())


def test_state_that_is_not_zero_is_zeroed_when_an_optimizer_is_attached():
    net, optimizer = made("sgd")
    train(net, optimizer, 1)
    (buffer,) = [optimizer.state[net.weight]["momentum_buffer"]]
    buffer[0, 0] = math.nan
    engine = Sparsifier(net, Static(), 0.25)
    mask = engine.masks["weight"]
    mask[0] = torch.tensor([False, True, True, False, True, True])
    engine.params["weight"].set_mask(mask)
    before = buffer.clone()
    engine.attach(optimizer)
    assert torch.equal(buffer, torch.where(mask, before, torch.zeros(())))
