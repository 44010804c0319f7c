"""When a layer without zeros computes the dense gradient of its weight, and of which passes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_sparse.compute import SparseEmbedding, SparseLinear


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


def test_gradients_that_were_thrown_away_after_the_forward_pass_do_not_count_either():
    """The order of Lightning's closure: training_step, zero_grad, backward."""
    for to_none in (True, False):
        layer, _, x = layers()
        layer(x).sum().backward()
        loss = layer(x * 2).sum()
        layer.zero_grad(set_to_none=to_none)
        loss.backward()
        torch.testing.assert_close(layer.dense_grad, (x * 2).sum(0).expand(4, 5))
        layer(x).sum().backward()  # and what comes after is added
        torch.testing.assert_close(layer.dense_grad, (x * 3).sum(0).expand(4, 5))


@pytest.mark.parametrize("wanted", ["input", "values"])
def test_looking_for_other_gradients_does_not_count(wanted):
    layer, _, x = layers()
    x.requires_grad_()
    loss = layer(x).sum()
    torch.autograd.grad(loss, x if wanted == "input" else layer.values, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(layer.dense_grad, x.detach().sum(0).expand(4, 5))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_that_is_used_twice_counts_twice(reentrant):
    dense = nn.Linear(5, 5, dtype=torch.float64)
    mask = torch.rand(5, 5) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    layer = SparseLinear.from_dense(dense, mask)
    layer.capture = True
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for model in (layer, dense):
        block = nn.Sequential(model, nn.Tanh())
        y = checkpoint(block, checkpoint(block, x, use_reentrant=reentrant), use_reentrant=reentrant)
        y.square().sum().backward()
    torch.testing.assert_close(layer.dense_grad, dense.weight.grad)


def test_a_look_up_that_is_changed_in_place_counts():
    dense = nn.Embedding(4, 3, dtype=torch.float64)
    mask = torch.rand(4, 3) < 0.5
    layer = SparseEmbedding.from_dense(dense, mask)
    layer.capture = True
    for model in (layer, dense):
        model(torch.tensor([0, 2, 2])).mul_(2).sum().backward()
    torch.testing.assert_close(layer.dense_grad, dense.weight.grad)


def test_a_single_sample_counts():
    layer, dense, x = layers()
    for model in (layer, dense):
        model(x[0]).square().sum().backward()
    torch.testing.assert_close(layer.dense_grad, dense.weight.grad)


def test_a_copy_of_a_bound_layer_takes_the_places_of_what_it_loads_and_counts_for_itself():
    layer, _, x = layers()
    layer.bind()
    layer(x).sum().backward()
    twin = copy.deepcopy(layer)
    assert twin.dense_grad is None
    assert not twin.capture
    layer.move(~layer.mask)
    with torch.no_grad():
        layer.values.fill_(1.0)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.mask, layer.mask)
    torch.testing.assert_close(twin(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer)).mask, layer.mask)
