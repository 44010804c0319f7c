"""Two processes that average gradients have one quantized model."""

from pathlib import Path

import pytest
import torch
from grids import on_grid
from helpers import same

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    """The results of both ranks."""
    return pair.results(Path(__file__).parents[1] / "quantized_ddp.py")


def test_ranks_have_the_same_weights_and_ranges_bit_for_bit(ranks):
    first, second = (rank["whole"] for rank in ranks)
    assert len(first["ranges"]) == 3
    for part in ("weights", "ranges", "codes", "masks"):
        assert same(first[part], second[part])
    assert torch.equal(first["shown"], second["shown"])
    assert on_grid(first["shown"], 4)
    for name, mask in first["masks"].items():
        assert not first["codes"][name][~mask].any()


def test_a_resumed_pair_ends_bit_for_bit(ranks):
    for rank in ranks:
        for part in ("weights", "ranges", "codes", "masks"):
            assert same(rank["whole"][part], rank["again"][part])
