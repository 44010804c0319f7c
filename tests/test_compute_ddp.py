"""compute="sparse" in two processes that average gradients."""

from pathlib import Path

import pytest
import torch
from compute_ddp_runs import ALGORITHMS
from helpers import same

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    """The results of both ranks."""
    return pair.results(Path(__file__).with_name("compute_ddp_runs.py"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_pair_trains_as_with_dense_layers(ranks, name):
    for rank in ranks:
        sparse, dense = rank[f"{name}/sparse"], rank[f"{name}/dense"]
        assert sparse["masks"] == dense["masks"]
        assert len(set(dense["masks"])) >= 4, "masks must move three times at least"
        assert sparse["numbers"] == 532 + 31
        assert dense["numbers"] == 2128 + 31
        for part in ("weights", "state"):
            torch.testing.assert_close(sparse[part], dense[part], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ranks_have_one_model(ranks, name):
    first, second = (rank[f"{name}/sparse"] for rank in ranks)
    assert first["masks"] == second["masks"]
    assert same(first["weights"], second["weights"])
    assert same(first["state"], second["state"])


def test_ranks_choose_alike_whatever_each_would_have_measured(ranks):
    first, second = (rank["auto"] for rank in ranks)
    assert first["kinds"] == second["kinds"]
    assert first["masks"] == ranks[0]["gmp/dense"]["masks"]
    assert same(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], ranks[0]["gmp/dense"]["weights"], rtol=1e-9, atol=1e-12)


def test_a_resumed_pair_ends_bit_for_bit_as_the_uninterrupted_one(ranks):
    for rank in ranks:
        assert same(rank["whole"]["weights"], rank["again"]["weights"])
        assert same(rank["whole"]["state"], rank["again"]["state"])
        assert rank["whole"]["masks"][-1] == rank["again"]["masks"][-1]
