"""SyncBatchNorm in two processes, by torch's own code: the operations that exist for GPUs only are stood in for."""

from pathlib import Path

import pytest
import torch
from helpers import same
from synced_ddp import one

RUNS = Path(__file__).parents[1] / "synced_ddp.py"
pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair):
    return pair.results(RUNS)


@pytest.mark.parametrize("shrink", ["live", "end"])
def test_ranks_cut_the_same_channels_of_synchronised_norms(ranks, shrink):
    first, second = (rank[shrink] for rank in ranks)
    assert first["kinds"] == ["SyncBatchNorm"]
    assert same(first["kept"], second["kept"])
    assert same(first["weights"], second["weights"])  # running statistics too
    assert same(first["state"], second["state"])
    assert torch.equal(first["says"], second["says"])


@pytest.mark.parametrize("shrink", ["live", "end"])
def test_norms_that_come_back_have_the_width_of_what_is_left(ranks, shrink):
    """Lightning makes new ones when the fit is over, as wide as the old ones say they are."""
    found = ranks[0][shrink]
    for name, width in found["widths"].items():
        assert {key: len(found["weights"][f"{name}.{key}"]) for key in ("weight", "running_var")} == {
            "weight": width,
            "running_var": width,
        }
    assert found["widths"]["bn"] + found["widths"]["block.bn1"] + found["widths"]["bn3"] == 14  # of 36


def test_two_processes_do_as_one_with_a_batch_of_both(ranks):
    found, alone = ranks[0]["live"], one()
    assert alone["kinds"] == ["BatchNorm1d", "BatchNorm2d"]
    assert same(found["kept"], alone["kept"])
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["says"], alone["says"], rtol=1e-4, atol=1e-5)
