"""When a layer without zeros computes the dense gradient of its weight, and of which passes."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_sparse.compute import SparseLinear


def layers():
    dense = nn.Linear(5, 4, dtype=torch.float64)
    mask = torch.rand(4, 5) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    layer = SparseLinear.from_dense(dense, mask)
    layer.capture = True
    return layer, dense, torch.randn(3, 5, dtype=torch.float64)


def test_it_is_the_sum_over_passes_and_uses_of_the_layer():
    layer, dense, x = layers()
    for model in (layer, dense):
        for scale in (1.0, 2.0):
            (model(x).square().sum() * scale + model(2 * x).sum() + model.weight.pow(3).sum()).backward()
    torch.testing.assert_close(layer.dense_grad, dense.weight.grad)


def test_a_functional_use_of_the_weight_counts():
    layer, dense, x = layers()
    for model in (layer, dense):
        F.linear(x, model.weight).square().sum().backward()
    torch.testing.assert_close(layer.dense_grad, dense.weight.grad)


def test_there_is_none_unless_it_is_asked_for():
    layer, _, x = layers()
    layer.capture = False
    layer(x).sum().backward()
    assert layer.dense_grad is None


def test_a_frozen_layer_has_none():
    layer, _, x = layers()
    layer.values.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert layer.dense_grad is None


def test_gradients_that_were_thrown_away_do_not_count():
    layer, _, x = layers()
    layer(x).sum().backward()
    layer.zero_grad()
    layer(x * 2).sum().backward()
    expected = (x * 2).sum(0).expand(4, 5)
    torch.testing.assert_close(layer.dense_grad, expected)
