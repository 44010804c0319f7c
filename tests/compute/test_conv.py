"""Sparse convolutions and embeddings compute what masked dense ones compute, and differentiate it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.compute import SparseConv2d, SparseEmbedding
from lightning_sparse.compute.native import native, using

PATHS = ["portable", "torch", *({native().isa} - {"portable"} if native() else ())]


@pytest.fixture(params=PATHS)
def path(request):
    with using(request.param):
        yield request.param


def layer(*shape, density=0.3, **options):
    """A sparse convolution and the masked dense one it stands for."""
    dense = nn.Conv2d(*shape, **options)
    mask = torch.rand_like(dense.weight) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    return SparseConv2d.from_dense(dense, mask), dense, mask


def compare(sparse, dense, mask, x, tolerance=1e-4):
    """Outputs and all gradients, for the same random gradient of the output."""
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = sparse(ours), dense(theirs)
    grad = torch.randn_like(expected)
    bias = [] if dense.bias is None else [dense.bias]
    got = torch.autograd.grad(y, [ours, sparse.values, *bias], grad)
    wanted = torch.autograd.grad(expected, [theirs, dense.weight, *bias], grad)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(got[0], wanted[0], **close)
    torch.testing.assert_close(got[1], wanted[1][mask], **close)
    torch.testing.assert_close(got[2:], wanted[2:], **close)


AXIS = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 19))
CHANNELS = st.integers(1, 9)


@given(AXIS, AXIS, CHANNELS, CHANNELS, st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("isa", PATHS)
def test_equals_a_masked_dense_convolution_for_all_sizes(isa, h, w, inputs, outputs, batch, density, bias):
    (kernel, stride, pad, size) = zip(h, w, strict=True)
    assume(all(n + 2 * p >= k for n, p, k in zip(size, pad, kernel, strict=True)))
    torch.manual_seed(0)
    options = {"stride": stride, "padding": pad, "bias": bias, "density": density}
    sparse, dense, mask = layer(inputs, outputs, kernel, **options)
    with using(isa):
        compare(sparse, dense, mask, torch.randn(batch, inputs, *size))


@pytest.mark.parametrize("shape", [(64, 64, 3, 1, 1), (40, 30, 3, 2, 1), (20, 33, 1, 2, 0)])
def test_equals_a_masked_dense_convolution_at_the_sizes_of_networks(path, shape):
    sparse, dense, mask = layer(*shape, density=0.1)
    compare(sparse, dense, mask, torch.randn(5, shape[0], 16, 16), 1e-3)


def test_equals_a_masked_dense_convolution_with_two_threads(path):
    sparse, dense, mask = layer(16, 24, 3, padding=1)
    x = torch.randn(20, 16, 9, 9)
    one = sparse(x)
    torch.set_num_threads(2)
    try:
        compare(sparse, dense, mask, x, 1e-3)
        torch.testing.assert_close(sparse(x), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"stride": (1, 3)}])
def test_gradients_are_those_of_differences(path, options):
    sparse, _, _ = layer(2, 3, 3, dtype=torch.double, **options)
    x = torch.randn(2, 2, 5, 6, dtype=torch.double, requires_grad=True)
    shape = (list(sparse.kernel), list(sparse.stride), list(sparse.padding))
    run = lambda x, v, b: torch.ops.lightning_sparse.conv2d(x, v, b, *sparse.index, *shape)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, sparse.values, sparse.bias))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        {"dilation": 2},
        {"kernel_size": 4, "padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
    ],
)
def test_what_the_kernels_have_not_is_computed_densely(options):
    sparse, dense, mask = layer(4, 6, **{"kernel_size": 3, **options})
    assert not sparse.direct
    compare(sparse, dense, mask, torch.randn(2, 4, 7, 8))
    assert torch.equal(sparse.to_dense()(torch.ones(1, 4, 7, 7)), dense(torch.ones(1, 4, 7, 7)))


def test_takes_channels_last_one_image_and_none(path):
    sparse, dense, mask = layer(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 6, 6)
    compare(sparse, dense, mask, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(sparse(x[0]), dense(x[0]))
    assert sparse(x[:0]).shape == (0, 4, 6, 6)


def test_torch_accepts_the_operator(path):
    sparse, dense, mask = layer(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    arguments = (x, sparse.values, sparse.bias, *sparse.index, [3, 3], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.lightning_sparse.conv2d.default, arguments)
    compare(torch.compile(sparse, fullgraph=True, backend="aot_eager"), dense, mask, x.detach())


def test_bfloat16_rounds_once(path):
    sparse, dense, _ = layer(3, 4, 3, padding=1)
    x = torch.randn(9, 3, 6, 6).bfloat16()
    torch.testing.assert_close(sparse(x), dense(x.float()).bfloat16(), rtol=8e-3, atol=1e-6)


def test_checkpoints_moves_and_dense_gradients_are_those_of_the_dense_layer(path):
    sparse, dense, _ = layer(3, 4, 3, padding=1)
    assert torch.equal(sparse.state_dict()["weight"], dense.weight)
    before, x = sparse.dense_weight().detach(), torch.randn(2, 3, 6, 6)
    mask = torch.rand(4, 3, 3, 3) < 0.2
    sparse.move(mask)
    assert torch.equal(sparse.dense_weight(), before * mask)
    torch.testing.assert_close(sparse(x), F.conv2d(x, before * mask, dense.bias, padding=1))
    sparse.capture = True
    weight = (before * mask).requires_grad_()
    F.conv2d(x, weight, dense.bias, padding=1).square().sum().backward()
    sparse(x).square().sum().backward()
    torch.testing.assert_close(sparse.dense_grad, weight.grad, rtol=1e-4, atol=1e-4)


def test_a_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"3 input channels got x of shape \[2, 4, 6, 6\]"):
        layer(3, 4, 3)[0](torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_equals_a_masked_dense_one(padding):
    dense = nn.Embedding(6, 4, padding_idx=padding)
    mask = torch.rand(6, 4) < 0.5
    with torch.no_grad():
        dense.weight.copy_(torch.randn(6, 4) * mask)
    sparse = SparseEmbedding.from_dense(dense, mask)
    sparse.capture = True
    ids = torch.tensor([[1, 2, 2], [5, 0, 1]])
    assert torch.equal(sparse(ids), dense(ids))
    for table in (sparse, dense):
        (table(ids) * torch.arange(24.0).view(2, 3, 4)).sum().backward()
    assert torch.equal(sparse.values.grad, dense.weight.grad[mask])
    assert torch.equal(sparse.dense_grad, dense.weight.grad)
    assert torch.equal(sparse.to_dense().weight, dense.weight)
    assert sparse(ids[:0]).shape == (0, 3, 4)
    with pytest.raises(IndexError, match=r"ids must be in \[0, 6\)"):
        sparse(torch.tensor([6]))


def test_an_embedding_that_renormalises_is_refused():
    with pytest.raises(ValueError, match="keep it dense"):
        SparseEmbedding.from_dense(nn.Embedding(3, 2, max_norm=1.0))


@pytest.mark.parametrize(("kernel", "padding"), [(3, "same"), ((5, 1), "same"), (4, "valid")])
def test_padding_by_name_that_is_alike_on_both_sides_is_computed_without_zeros(path, kernel, padding):
    sparse, dense, mask = layer(4, 6, kernel, padding=padding)
    assert sparse.direct
    compare(sparse, dense, mask, torch.randn(2, 4, 7, 8))
