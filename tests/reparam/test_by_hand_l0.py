"""L0 on tables of a few weights, worked by hand."""

import math

import pytest
import torch
from latents import close, latent
from tables import live
from torch import nn

from lightning_sparse import L0

GROUP = {"lr": 0.1}

# At log alpha 0 and beta 2/3, u = .5 .9 .1 .8 .2 gives s = 1/2 27/28 1/28 8/9 1/9; z = clamp(1.2 s - .1)
PRICE = 11 ** (2 / 3) / (1 + 11 ** (2 / 3)) ** 2  # slope of sigmoid at 2/3 log 11: of the chance that a gate is open
U = [0.5, 0.9, 0.1, 0.8, 0.2]
Z = [0.5, 1.0, 0.0, 29 / 30, 1 / 30]
SLOPE = [0.45, 0, 0, 1.8 * 8 / 81, 1.8 * 8 / 81]  # 1.2 s (1 - s) / beta where 0 < z < 1


def gated(weight, u, algorithm=None, **settings):
    """A layer whose gates are all at log alpha 0 and draw ``u``."""
    p = latent(weight, algorithm or L0(begin=0, stop=9), **settings)
    p.state["log_alpha"].zero_()
    p.uniform = lambda salt="", shape=None: torch.tensor(u).view(shape)
    return p


def test_a_training_pass_of_l0_draws_gates_and_others_take_their_centre():
    p = gated([2.0, 3, 4, 5, -6], U)
    close(L0().effective(p, noisy=True), [w * z for w, z in zip([2, 3, 4, 5, -6], Z, strict=True)])
    close(L0().effective(p), [1, 1.5, 2, 2.5, -3])
    p.state["log_alpha"].copy_(torch.tensor([-2.5, -2.3, 2.5, 0.0, 4.0]))  # 1.2 sigmoid - .1, by a calculator
    close(L0().effective(p), [0, 3 * 0.0093469, 4, 2.5, -6], atol=1e-5)


def test_the_gradients_of_weights_and_gates_under_l0():
    p = gated([2.0, 3, 4, 5, -6], U)
    L0().effective(p, noisy=True)
    close(L0().pull_back(p, torch.tensor([1.0, 1, 1, 2, 3])), [z * g for z, g in zip(Z, [1, 1, 1, 2, 3], strict=True)])
    close(p.scratch["gates"], [2 * 0.45, 0, 0, 2 * 5 * SLOPE[3], 3 * -6 * SLOPE[4]])


def test_the_price_of_a_gate():
    # open with chance sigmoid(2/3 log 11) = .8318, whose slope is .1399; Adam's mean takes a tenth of the gradient
    p = gated([2.0, 3, 4, 5, -6], U)
    L0(strength=0.5).learn(p, GROUP, None)
    close(p.state["mean"], [0.1 * 0.5 * PRICE] * 5)
    close(p.state["log_alpha"], [-1e-3] * 5)  # Adam's first step is as long as its learning rate


def test_the_gates_step_goes_against_gradient_and_price_and_stays_in_bounds():
    algorithm = L0(strength=0.0, lr=0.5)
    p = gated([2.0, 3, 4, 5, -6], U, algorithm)
    for _ in range(3):
        algorithm.effective(p, noisy=True)
        algorithm.pull_back(p, torch.tensor([-8.0, 1, 1, 16, 8]))  # an unscaled -1, 1/8, 1/8, 2, 1
        algorithm.learn(p, {"lr": 0.1, "initial_lr": 0.2}, torch.tensor(8.0))
        p.state["log_alpha"][1:3] = 0.0
    assert p.state["log_alpha"][0] > 0.5 > -0.5 > p.state["log_alpha"][3]
    assert p.state["log_alpha"][4] > 0.5
    p.state["log_alpha"].fill_(4.6)
    algorithm.pull_back(p, torch.tensor([-1.0] * 5))
    algorithm.learn(p, GROUP, None)
    assert float(p.state["log_alpha"].max()) == pytest.approx(math.log(100))


@pytest.mark.parametrize(
    ("module", "shape", "gates"),
    [
        (nn.Linear(3, 2), (2, 3), (1, 3)),
        (nn.Conv2d(3, 2, 2), (2, 3, 2, 2), (2, 1, 1, 1)),
        (nn.ConvTranspose2d(3, 2, 2), (3, 2, 2, 2), (1, 2, 1, 1)),
    ],
)
def test_a_gate_for_each_unit(module, shape, gates):
    # every weight of a unit is 2 and gets gradient 1: the gate gets .45 * 2 of each, and pays for each
    algorithm = L0(gates="unit", strength=0.5)
    size, count = math.prod(shape), math.prod(gates)
    p = gated(torch.full(shape, 2.0).tolist(), [0.5] * count, algorithm, module=module)
    assert p.state["log_alpha"].shape == gates
    close(algorithm.effective(p, noisy=True), torch.ones(shape).tolist())
    close(algorithm.pull_back(p, torch.ones(shape)), torch.full(shape, 0.5).tolist())
    each = size // count
    close(p.scratch["gates"].flatten(), [0.9 * each] * count)
    algorithm.learn(p, GROUP, None)
    close(p.state["mean"].flatten(), [0.1 * each * (0.9 + 0.5 * PRICE)] * count)


def test_l0_closes_the_least_open_gates_for_good():
    algorithm = L0(every=1, begin=0, stop=2)
    p = latent([1.0] * 8, algorithm, target=2)
    p.state["log_alpha"].copy_(torch.tensor([0.0, 3, -1, 2, 1, -3, -2, 4]))
    masks = algorithm.update([p], 1)  # half way: 2 + 6 / 8 = 2.75 live, so 3
    assert live(masks["w"]) == [1, 3, 7]
    p.set_mask(masks["w"])
    p.state["log_alpha"].copy_(torch.tensor([4.0, 3, 4, 2, 4, 4, 4, -1]))  # what is closed stays closed
    assert live(algorithm.update([p], 2)["w"]) == [1, 3]


def test_l0_without_a_density_closes_what_is_closed_at_stop():
    algorithm = L0(every=1, begin=0, stop=2)
    p = latent([1.0] * 4, algorithm, free=True)
    p.state["log_alpha"].copy_(torch.tensor([-2.39, -2.40, 0.0, -4.6]))  # closed below -log 11 = -2.3979
    assert algorithm.update([p], 1) == {}
    assert live(algorithm.update([p], 2)["w"]) == [0, 2]
    p.state["log_alpha"].copy_(torch.tensor([-4.5, -4.1, -4.4, -4.6]))
    assert live(algorithm.update([p], 2)["w"]) == [1], "no layer may die"
