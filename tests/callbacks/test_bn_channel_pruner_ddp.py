"""Two processes: one plan, the same weights after it, and runs that go on."""

from pathlib import Path

import pytest
import torch
from helpers import same

RUNS = Path(__file__).parents[1] / "pruned_ddp.py"
SCENARIOS = ["plain", "resumed", "late", "taylor", "never", "masks"]
pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair):
    return pair.results(RUNS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_cut_the_same_channels_and_stay_alike(ranks, scenario):
    first, second = (rank[scenario] for rank in ranks)
    assert first["cuts"] == second["cuts"] == 2
    assert same(first["kept"], second["kept"])
    assert same(first["parameters"], second["parameters"])
    assert same(first["state"], second["state"])
    assert same(first["masks"], second["masks"])
    assert not torch.equal(first["random"], second["random"])


def test_channels_are_really_out(ranks):
    shapes = [tuple(rank["plain"]["parameters"]["stem.weight"].shape) for rank in ranks]
    assert shapes[0] == shapes[1]
    assert shapes[0][0] < 16
    assert ranks[0]["never"]["parameters"]["stem.weight"].shape[0] == 16


@pytest.mark.parametrize("scenario", ["resumed", "late"])
def test_a_run_goes_on_bit_for_bit_on_both_ranks(ranks, scenario):
    for rank in ranks:
        assert same(rank["plain"]["kept"], rank[scenario]["kept"])
        assert same(rank["plain"]["parameters"], rank[scenario]["parameters"])
        assert same(rank["plain"]["state"], rank[scenario]["state"])
