"""Modules and codes for the tests of what is saved: any type, any bits, any pattern of zeros."""

import torch
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.quant.grid import Codes

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
SHAPES = st.lists(st.integers(0, 7), max_size=3) | st.tuples(st.integers(1, 3), st.integers(200, 2000)).map(list)


class Holder(nn.Module):
    """Tensors under given names."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def bits(tensor):
    """What is in memory."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)


def tensor_of(dtype, shape, density, seed, *, wild=True):
    """Any bits, so also -0.0, infinities, subnormals, NaN with any payload; the rest are zeros."""
    random = torch.Generator().manual_seed(seed)
    size = dtype.itemsize
    raw = torch.randint(0, 256, (*shape, size), generator=random, dtype=torch.uint8)
    raw[..., -1:] *= 1 if wild else 0
    raw *= torch.rand(shape, generator=random)[..., None] < density
    flat = raw.reshape(-1)
    return (flat.remainder(2).bool() if dtype == torch.bool else flat.view(dtype)).reshape(shape)


@st.composite
def tensors(draw):
    """A tensor of any type and shape."""
    density = draw(st.sampled_from([0.0, 0.003, 0.05, 0.3, 0.9, 1.0]))
    return tensor_of(draw(st.sampled_from(DTYPES)), draw(SHAPES), density, draw(st.integers(0, 2**31)))


@st.composite
def coded(draw):
    """Codes, and a weight of floats that they may be of."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4) | st.just([2, 3000]))
    seed, n_bits = draw(st.integers(0, 2**31)), draw(st.integers(2, 8))
    axis = draw(st.integers(0, len(shape) - 1))
    random = torch.Generator().manual_seed(seed)
    most = 2 ** (n_bits - 1) - 1
    codes = torch.randint(-most, most + 1, shape, generator=random, dtype=torch.int8)
    codes *= torch.rand(shape, generator=random) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    scale = torch.rand(shape[axis], generator=random).exp().sub_(0.999)
    weight = codes.to(draw(st.sampled_from([torch.float32, torch.float64])))
    return weight, Codes(codes, scale, axis, n_bits)
