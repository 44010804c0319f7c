"""Sparse linear layers compute what a masked dense layer computes, on every path, and differentiate it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.compute import SparseLinear, followed
from lightning_sparse.compute.native import native, using
from lightning_sparse.compute.topology import BLOCK

PATHS = ["portable", "torch", *({native().isa} - {"portable"} if native() else ())]
sparse_linear = torch.ops.lightning_sparse.linear


@pytest.fixture(params=PATHS)
def path(request):
    with using(request.param):
        yield request.param


def layer(inputs, outputs, density, bias=True, dtype=torch.float32):
    """A sparse layer and the dense one it stands for."""
    dense = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    mask = torch.rand(outputs, inputs) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    return SparseLinear.from_dense(dense, mask), dense, mask


def compare(sparse, dense, mask, x, tolerance):
    """Outputs and all gradients, for the same random gradient of the output."""
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = sparse(ours), F.linear(theirs, dense.weight, None if dense.bias is None else dense.bias.clone())
    grad = torch.randn_like(y)
    bias = [] if dense.bias is None else [dense.bias]
    got = torch.autograd.grad(y, [ours, sparse.values, *bias], grad)
    wanted = torch.autograd.grad(expected, [theirs, dense.weight, *bias], grad)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(got[0], wanted[0], **close)
    torch.testing.assert_close(got[1], wanted[1][mask], **close)
    torch.testing.assert_close(got[2:], wanted[2:], **close)


SIZES = st.integers(1, 40) | st.integers(60, 70)


BATCHES = SIZES | st.integers(120, 140)


@given(SIZES, SIZES, BATCHES, st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.booleans(), st.integers())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("isa", PATHS)
def test_equals_a_masked_dense_layer_for_all_sizes(isa, inputs, outputs, batch, density, bias, seed):
    torch.manual_seed(seed % 1000)
    sparse, dense, mask = layer(inputs, outputs, density, bias)
    with using(isa):
        compare(sparse, dense, mask, torch.randn(batch, inputs), 1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(2 * BLOCK + 3, 5), (5, BLOCK + 1), (BLOCK, 3)])
@pytest.mark.parametrize("batch", [1, 3, 600])
def test_equals_a_masked_dense_layer_in_several_blocks_of_columns(path, inputs, outputs, batch):
    sparse, dense, mask = layer(inputs, outputs, 0.05)
    compare(sparse, dense, mask, torch.randn(batch, inputs), 2e-3 if batch > 99 else 5e-4)


def test_equals_a_masked_dense_layer_with_two_threads(path):
    sparse, dense, mask = layer(300, 200, 0.1)
    x = torch.randn(150, 300)
    one = sparse(x)
    torch.set_num_threads(2)
    try:
        compare(sparse, dense, mask, x, 1e-4)
        assert torch.equal(sparse(x), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_gradients_are_those_of_differences(path, batch):
    sparse, _, _ = layer(11, 19, 0.3, dtype=torch.double)
    x = torch.randn(batch, 11, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, v, b: sparse_linear(x, v, b, *sparse.index), (x, sparse.values, sparse.bias)
    )


@pytest.mark.parametrize("shape", [(30,), (0, 30), (2, 3, 30), (2, 0, 30)])
def test_takes_any_leading_dimensions_as_a_dense_layer_does(path, shape):
    sparse, dense, _ = layer(30, 20, 0.2)
    x = torch.randn(shape)
    y = sparse(x)
    torch.testing.assert_close(y, dense(x))
    y.sum().backward()
    assert sparse.values.grad.isfinite().all()


def test_takes_inputs_and_gradients_that_are_not_contiguous(path):
    sparse, dense, mask = layer(30, 20, 0.2)
    x = torch.randn(30, 50).t()
    y = sparse(x)
    torch.testing.assert_close(y, dense(x))
    y.backward(torch.ones(1).expand(50, 20))
    torch.testing.assert_close(sparse.values.grad, x.sum(0).expand(20, 30)[mask])


def test_bfloat16_rounds_once(path):
    """Sums in float32 of exact products: the result is the float32 one, rounded."""
    sparse, dense, mask = layer(64, 48, 0.2)
    x = torch.randn(20, 64).bfloat16()
    y = sparse(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, dense(x.float()).bfloat16(), rtol=8e-3, atol=1e-6)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(sparse.values.grad, x.float().sum(0).expand(48, 64)[mask], rtol=1e-5, atol=1e-5)


def test_under_autocast_the_output_has_the_type_of_a_dense_one(path):
    sparse, dense, _ = layer(16, 8, 0.5)
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = sparse(x), dense(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert sparse.values.grad.dtype == torch.float32


def test_torch_accepts_the_operators(path):
    sparse, _, _ = layer(12, 9, 0.4)
    x = torch.randn(5, 12, requires_grad=True)
    torch.library.opcheck(sparse_linear.default, (x, sparse.values, sparse.bias, *sparse.index))
    torch.library.opcheck(sparse_linear.default, (x, sparse.values, None, *sparse.index))


def test_compiles_into_one_graph(path):
    sparse, dense, mask = layer(12, 9, 0.4)
    compare(torch.compile(sparse, fullgraph=True, backend="aot_eager"), dense, mask, torch.randn(5, 12), 1e-5)


def test_exports():
    sparse, dense, _ = layer(12, 9, 0.4)
    x = torch.randn(5, 12)
    program = torch.export.export(sparse, (x,))
    torch.testing.assert_close(program.module()(x), dense(x))


def test_a_gradient_of_a_gradient_is_refused():
    sparse, _, _ = layer(12, 9, 0.4)
    x = torch.randn(5, 12, requires_grad=True)
    (gx,) = torch.autograd.grad(sparse(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="compute='dense'"):
        gx.sum().backward()


@pytest.mark.parametrize("x", [torch.zeros(3, 13), torch.zeros(3, 12, dtype=torch.int64)])
def test_a_wrong_input_is_refused(path, x):
    with pytest.raises(ValueError, match=r"sparse layer takes floating|12 inputs"):
        layer(12, 9, 0.4)[0](x)


def test_checkpoints_are_those_of_the_dense_layer(path):
    sparse, dense, _ = layer(12, 9, 0.4)
    saved = sparse.state_dict()
    assert list(saved) == list(dense.state_dict())
    assert all(torch.equal(saved[key], value) for key, value in dense.state_dict().items())
    other = SparseLinear.from_dense(nn.Linear(12, 9), sparse.mask)
    other.load_state_dict(saved)
    assert torch.equal(other.values, sparse.values)
    nested = nn.Sequential(SparseLinear.from_dense(nn.Linear(12, 9), sparse.mask))
    nested.load_state_dict({f"0.{key}": value for key, value in saved.items()})
    assert torch.equal(nested[0].values, sparse.values)


def test_a_checkpoint_with_other_places_brings_them():
    sparse = SparseLinear.from_dense(nn.Linear(4, 1), torch.tensor([[True, True, True, False]]))
    values = sparse.values
    sparse.load_state_dict({"weight": torch.tensor([[0.0, 0.0, 0.0, 2.0]]), "bias": torch.zeros(1)})
    assert sparse.mask.tolist() == [[True, True, False, True]]
    assert sparse.values is values
    assert sparse.values.tolist() == [0, 0, 2]


def test_a_checkpoint_that_does_not_fit_is_refused():
    sparse, dense, _ = layer(12, 9, 0.4)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*weight"):
        sparse.load_state_dict({"bias": dense.bias})
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \[9, 13\] given"):
        sparse.load_state_dict({"weight": torch.zeros(9, 13), "bias": dense.bias})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*values"):
        sparse.load_state_dict({**dense.state_dict(), "values": torch.zeros(3)})


def test_moving_keeps_survivors_and_zeroes_the_grown():
    weight = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]])
    dense = nn.Linear(3, 2)
    dense.weight = nn.Parameter(weight)
    sparse = SparseLinear.from_dense(dense)
    values, index = sparse.values, sparse.index
    values.grad = torch.tensor([10.0, 20.0, 30.0, 40.0])
    source = sparse.move(torch.tensor([[False, True, True], [True, False, True]]))
    assert source.tolist() == [1, -1, -1, 3]
    assert sparse.dense_weight().tolist() == [[0, 2, 0], [0, 0, 4]]
    assert sparse.mask.tolist() == [[False, True, True], [True, False, True]]
    assert values.grad.tolist() == [20, 0, 0, 40]
    assert followed(torch.tensor([5.0, 6.0, 7.0, 8.0]), source).tolist() == [6, 0, 0, 8]
    assert sparse.values is values
    assert all(a is b for a, b in zip(sparse.index, index, strict=True))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
def test_moving_to_another_count_keeps_the_parameter(density):
    sparse, _, old = layer(30, 20, 0.4)
    before, values, x = sparse.dense_weight().detach(), sparse.values, torch.randn(3, 30)
    mask = torch.rand(20, 30) < density
    sparse.move(mask)
    assert sparse.values is values
    assert list(values.shape) == [int(mask.sum())]
    assert torch.equal(sparse.dense_weight(), before * mask)
    torch.testing.assert_close(sparse(x), F.linear(x, before * mask, sparse.bias))
    sparse(x).sum().backward()
    assert values.grad.shape == values.shape
    assert torch.equal(sparse.mask, mask)
    sparse.move(old)
    assert torch.equal(sparse.dense_weight(), before * mask * old)


def test_a_mask_of_another_shape_is_refused():
    sparse, _, _ = layer(4, 3, 0.5)
    with pytest.raises(ValueError, match=r"mask must be bool \[3, 4\], got torch.bool \[4, 3\]"):
        sparse.move(torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be bool and of the weight's shape"):
        SparseLinear.from_dense(nn.Linear(4, 3), torch.ones(3, 4))


def test_the_dense_gradient_is_collected_while_it_is_asked_for(path):
    sparse, dense, _ = layer(12, 9, 0.4)
    total = torch.zeros(9, 12)
    for step in range(4):
        sparse.capture = 1 <= step <= 2
        x = torch.randn(5, 12)
        sparse(x).square().sum().backward()
        (expected,) = torch.autograd.grad(dense(x).square().sum(), dense.weight)
        total += expected if sparse.capture else 0
    torch.testing.assert_close(sparse.dense_grad, total)
    sparse.dense_grad = None
    with torch.no_grad():
        sparse(x)
    assert sparse.dense_grad is None


def test_trains_as_the_masked_dense_layer():
    sparse, dense, mask = layer(20, 10, 0.3)
    dense.bias = nn.Parameter(dense.bias.detach().clone())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (sparse, dense)]
    for _ in range(5):
        x = torch.randn(8, 20)
        for m, optimizer in zip((sparse, dense), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            dense.weight.mul_(mask)
    torch.testing.assert_close(sparse.dense_weight(), dense.weight)
    torch.testing.assert_close(sparse.bias, dense.bias)


def test_copies_and_pickles_and_becomes_dense_again():
    sparse, dense, _ = layer(12, 9, 0.4)
    x = torch.randn(5, 12)
    copied = copy.deepcopy(sparse)
    copied.move(torch.zeros(9, 12, dtype=torch.bool))
    assert torch.equal(copied(x), sparse.bias.expand(5, 9))
    assert torch.equal(pickle.loads(pickle.dumps(sparse))(x), sparse(x))
    again = sparse.eval().to_dense()
    assert torch.equal(again.weight, dense.weight)
    assert again.bias is sparse.bias
    assert not again.training


def test_is_as_frozen_as_the_dense_layer():
    dense = nn.Linear(4, 3).requires_grad_(False)
    assert not SparseLinear.from_dense(dense).values.requires_grad
    assert not SparseLinear.from_dense(dense).to_dense().weight.requires_grad
