"""Live entries of tensors of any layout, against a plain walk over all entries."""

from itertools import product

import pytest
import torch

from lightning_sparse.core.masks import pack_bits
from lightning_sparse.optim.places import Places

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2),
    "with gaps": lambda x: torch.full((4, 6, 3, 5), -7.0)[:, ::2, :, :4].copy_(x),
    "inside another": lambda x: torch.full((5, 3, 3, 4), -7.0)[1:].copy_(x),
    "expanded": lambda x: torch.tensor(2.0).expand(4, 3, 3, 4),
}


def case():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(4, 3, 3, 4, generator=generator)
    return values, torch.rand(values.shape, generator=generator) < 0.3


def walk(mask):
    """Coordinates of live entries, the last axis fastest."""
    return [at for at in product(*map(range, mask.shape)) if mask[at]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_live_entries_come_in_row_major_order_whatever_the_layout(layout):
    values, mask = case()
    tensor = LAYOUTS[layout](values)
    places = Places(pack_bits(mask), values)
    assert places.take(tensor).tolist() == [float(tensor[at]) for at in walk(mask)]
    assert places.index.dtype == torch.int32


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_only_live_entries_are_written(layout):
    values, mask = case()
    tensor = LAYOUTS[layout](values.clone())
    outside = tensor._base if tensor._base is not None else tensor
    untouched = int((outside == -7).sum())
    new = torch.arange(float(mask.sum())) + 100
    Places(pack_bits(mask), values).put(tensor, new)
    expected = values.clone()
    for at, value in zip(walk(mask), new, strict=True):
        expected[at] = value
    assert torch.equal(tensor, expected)
    assert int((outside == -7).sum()) == untouched  # the gaps between the rows, and what lies before


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_spread_fills_with_zeros_and_keeps_the_layout(layout):
    values, mask = case()
    weight = torch.nn.Parameter(LAYOUTS[layout](values))
    full = Places(pack_bits(mask), weight).spread(torch.ones(int(mask.sum())), like=weight)
    assert full.stride() == weight.stride()
    assert torch.equal(full, mask.float())
    assert not full.requires_grad


def test_a_mask_without_live_weights_takes_nothing():
    weight = torch.ones(3, 4)
    places = Places(pack_bits(torch.zeros(3, 4, dtype=torch.bool)), weight)
    places.put(weight, places.take(weight))
    assert places.take(weight).shape == (0,)
    assert torch.equal(weight, torch.ones(3, 4))
