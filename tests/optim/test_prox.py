"""Proximal steps against tables worked by hand, and minima against the lasso's closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.optim import ProxSGD
from lightning_sparse.optim.prox import shrink_rows, soft_threshold

FLOATS = st.floats(-10, 10, width=32)


def plain_soft(value, by):
    """Parikh & Boyd 2014, eq. 6.9: minus by, plus by, or zero between."""
    return value - by if value >= by else value + by if value <= -by else 0.0


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=9), st.floats(0, 5, width=32))
def test_soft_threshold_is_the_papers(values, by):
    weight = torch.tensor(values, dtype=torch.float64)
    soft_threshold(weight, by)
    assert weight.tolist() == [plain_soft(value, by) for value in values]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=5), st.floats(0.125, 5, width=32))
def test_shrunk_rows_are_shorter_by_that_much_or_zero(rows, by):
    weight = torch.tensor(rows, dtype=torch.float64)
    before = weight.clone()
    shrink_rows(weight, by)
    for row, old in zip(weight.tolist(), before.tolist(), strict=True):
        length = (old[0] ** 2 + old[1] ** 2) ** 0.5
        if length <= by:
            assert row == pytest.approx([0, 0], abs=1e-12)
        else:
            assert row == pytest.approx([x * (1 - by / length) for x in old], abs=1e-9)


def test_a_step_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[1.0, 0.25], [-1.0, 0.0]])), nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = ProxSGD([weight, bias], lr=0.5, l1=0.5)
    weight.grad, bias.grad = torch.tensor([[1.0, 0.0], [0.25, 2.0]]), torch.tensor([1.0, 0.0])
    optimizer.step()
    # the gradient step: .5, .25, -1.125, -1; towards zero by .25; the bias is not penalised
    assert weight.tolist() == [[0.25, 0.0], [-0.875, -0.75]]
    assert bias.tolist() == [0.5, 0.0]


def test_a_step_of_rows_by_hand():
    weight = nn.Parameter(torch.tensor([[[3.0], [4.0]], [[0.3], [0.4]]]))
    optimizer = ProxSGD([weight], lr=0.5, l1=2.0, groups="rows")
    weight.grad = torch.zeros(2, 2, 1)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[[2.4], [3.2]], [[0.0], [0.0]]]))  # 5 becomes 4
    assert (weight[1] == 0).all()


def test_rows_count_live_weights_only():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0, 100.0], [5.0, 0.3, 0.4]]))
    optimizer = ProxSGD([weight], lr=1.0, l1=1.0, groups="rows")
    optimizer.set_mask(weight, torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
    weight.grad = torch.zeros(2, 3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.4, 3.2, 100.0], [5.0, 0.0, 0.0]]))


def test_no_penalty_is_plain_sgd_and_a_group_may_have_none():
    weights = [nn.Parameter(torch.tensor([[1.0, -0.001]])) for _ in range(3)]
    theirs = torch.optim.SGD(weights[:1], lr=0.1, momentum=0.9)
    mine = ProxSGD([{"params": weights[1:2], "l1": 0.0}, {"params": weights[2:]}], lr=0.1, momentum=0.9, l1=0.1)
    for optimizer in (theirs, mine):
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.full((1, 2), 0.01)
            optimizer.step()
    assert torch.equal(weights[0], weights[1])
    assert weights[2][0, 1] == 0


MOMENTA = [
    {},
    {"momentum": 0.5},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.8, "dampening": 0.5},
]


@pytest.mark.parametrize("options", MOMENTA, ids=str)
def test_it_finds_the_minimum_of_the_lasso_whatever_the_momentum(options):
    # sum of a/2 (w - c)^2 + l1 |w| is least at c moved towards zero by l1 / a
    a, c = torch.tensor([[1.0, 2.0, 0.5, 1.0, 4.0]]), torch.tensor([[2.0, 0.2, -3.0, -0.4, 0.3]])
    expected = torch.tensor([[1.5, 0.0, -2.0, 0.0, 0.175]])  # l1 = .5: by .5, .25, 1, .5, .125
    weight = nn.Parameter(torch.zeros(1, 5))
    optimizer = ProxSGD([weight], lr=0.05, l1=0.5, **options)
    for _ in range(1500):
        weight.grad = a * (weight.detach() - c)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=0)
    assert torch.equal(weight == 0, expected == 0)


def test_weight_decay_makes_it_an_elastic_net():
    # 1/2 (w - 2)^2 + .5 |w| + 1/2 w^2: w - 2 + .5 + w = 0
    weight = nn.Parameter(torch.zeros(1, 1))
    optimizer = ProxSGD([weight], lr=0.1, l1=0.5, weight_decay=1.0)
    for _ in range(200):
        weight.grad = weight.detach() - 2
        optimizer.step()
    assert weight.item() == pytest.approx(0.75, abs=1e-5)


def test_rows_that_carry_nothing_become_zero_and_the_others_keep_all_their_weights():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4, bias=False), torch.randn(200, 6)
    target = x @ torch.randn(6, 4) * torch.tensor([1.0, 0.0, 1.0, 0.0])  # two outputs are noise
    optimizer = ProxSGD(layer.parameters(), lr=0.2, l1=0.1, groups="rows")
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - target - 0.1 * torch.randn(200, 4)).square().sum(1).mean().backward()
        optimizer.step()
    assert layer.weight.count_nonzero(dim=1).tolist() == [6, 0, 6, 0]
