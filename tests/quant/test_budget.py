"""Bits under a budget, against every possible choice; expected harm, against arithmetic by hand."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.core.probe import Probe
from lightning_sparse.quant.budget import assign
from lightning_sparse.quant.sensitivity import harm, squared_gradients

CHOICES = (2, 3, 4, 6, 8)


def total(table, bits):
    return sum(table[name][b] for name, b in bits.items())


def best(harms, costs, budget):
    """By trying them all."""
    every = [dict(zip(harms, row, strict=True)) for row in product(CHOICES, repeat=len(harms))]
    return min(total(harms, bits) for bits in every if total(costs, bits) <= budget)


def convex(scale):
    """Errors fall fourfold with each bit, as those of a uniform grid do."""
    return {bits: scale * 4.0**-bits for bits in CHOICES}


layers = st.lists(st.tuples(st.floats(0.001, 1000), st.integers(1, 1000)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(layers, st.floats(2, 8))
def test_the_budget_is_kept_and_one_step_more_or_a_swap_of_the_last_would_gain_little(rows, average):
    harms = {str(i): convex(scale) for i, (scale, _) in enumerate(rows)}
    costs = {str(i): {bits: float(bits * size) for bits in CHOICES} for i, (_, size) in enumerate(rows)}
    budget = average * sum(size for _, size in rows)
    bits = assign(harms, costs, budget)
    assert total(costs, bits) <= budget
    for name, now in bits.items():  # nothing that fits is left unused
        for more in (b for b in CHOICES if b > now):
            assert total(costs, {**bits, name: more}) > budget
    if len({size for _, size in rows}) == 1 and average in CHOICES:  # equal steps: nothing is left over
        assert total(harms, bits) <= best(harms, costs, budget) * 4


def test_equal_layers_get_equal_bits_and_a_sensitive_one_more():
    costs = {name: {bits: 100.0 * bits for bits in CHOICES} for name in "abc"}
    assert assign(dict.fromkeys("abc", convex(1.0)), costs, 1200) == {"a": 4, "b": 4, "c": 4}
    uneven = {"a": convex(1.0), "b": convex(256.0), "c": convex(1.0)}
    bits = assign(uneven, costs, 1200)
    assert bits["b"] > max(bits["a"], bits["c"])
    assert total(uneven, bits) == best(uneven, costs, 1200)


def test_a_budget_for_everything_leaves_all_bits_and_one_below_the_least_is_refused():
    costs = {"a": {2: 20.0, 8: 80.0}}
    assert assign({"a": {2: 1.0, 8: 0.0}}, costs, 80) == {"a": 8}
    with pytest.raises(ValueError, match=r"the budget is 19, and the fewest bits everywhere need 20"):
        assign({"a": {2: 1.0, 8: 0.0}}, costs, 19)


def test_fewer_bits_that_harm_less_are_taken_first():
    harms, costs = {"a": {2: 0.5, 3: 1.0, 8: 0.0}}, {"a": {2: 2.0, 3: 3.0, 8: 8.0}}
    assert assign(harms, costs, 3) == {"a": 2}


def test_expected_harm_is_half_the_curvature_times_the_squared_error():
    weight = torch.tensor([[8.0, 0.0, -1.6], [1.0, 0.26, 0.0]])
    squared = torch.tensor([[1.0, 5.0, 2.0], [1.0, 4.0, 9.0]])
    # at 4 bits: steps of 1 and of 1/8; -1.6 becomes -2, 0.26 becomes 0.25; dead weights have no error
    assert harm(weight, squared, 0, [4])[4] == pytest.approx(0.5 * (2 * 0.16 + 4 * 0.0001), rel=1e-5)


def test_squared_gradients_are_averaged_over_batches_and_leave_the_model_alone():
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        net[1].weight.fill_(3.0)
    batches = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[9.0, 9.0]])]
    found = squared_gradients(Probe(net, batches, lambda m, x: m(x).sum()), ["0.weight", "1.weight"], 2)
    # gradients of the first weight are 3 * x, of the second the first layer's output: 1 and 4
    assert torch.equal(found["0.weight"], torch.tensor([[(9 + 36) / 2, 9 / 2]]))
    assert torch.equal(found["1.weight"], torch.tensor([[(1 + 16) / 2]]))
    assert net[0].weight.grad is None


def test_no_batch_and_a_weight_that_the_loss_does_not_see_are_errors():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="there is none"):
        squared_gradients(Probe(net, [], lambda m, x: m(x).sum()), ["0.weight"], 2)
    with pytest.raises(ValueError, match=r"does not depend on 1\.weight"):
        squared_gradients(Probe(net, [torch.ones(1, 1)], lambda m, x: m[0](x).sum()), ["0.weight", "1.weight"], 2)
