"""Two processes that average gradients have one model and one set of masks."""

from pathlib import Path

import pytest
import torch
from ddp_runs import ALGORITHMS, LAYOUTS, compare
from helpers import same

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    """The results of both ranks."""
    return pair.results(Path(__file__).with_name("ddp_runs.py"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masks_do_not_depend_on_how_a_batch_is_split(ranks, name):
    runs = {layout: compare(name, layout) for layout, (_, _, processes) in LAYOUTS.items() if processes == 1}
    both = [(i, layout) for i in (0, 1) for layout in LAYOUTS if layout not in runs]
    runs |= {f"{layout}, rank {i}": ranks[i][f"{name}/{layout}"] for i, layout in both}
    masks = {layout: run["masks"] for layout, run in runs.items()}
    assert len(masks) == 6
    assert len(set(masks["16"])) >= 4, "masks must move three times at least"
    assert all(len(other) == 18 for other in masks.values())
    assert all(other == masks["16"] for other in masks.values()), [k for k, v in masks.items() if v != masks["16"]]
    assert not any(run["leaks"] for run in runs.values())


@pytest.mark.parametrize("name", ["set", "static"])
def test_ranks_agree_although_their_random_states_differ(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert not torch.equal(first["random"], second["random"]), "the ranks were alike: the test says nothing"
    assert first["masks"] == second["masks"]
    assert len(set(first["masks"])) >= (4 if name == "set" else 1)
    assert same(first["weights"], second["weights"])


@pytest.mark.parametrize("name", [*ALGORITHMS, "set"])
def test_a_resumed_pair_ends_bit_for_bit_as_the_uninterrupted_one(ranks, name):
    for rank in ranks:
        whole, again = rank[f"{name}/resume"]["whole"], rank[f"{name}/resume"]["again"]
        assert all(same(whole[part], again[part]) for part in ("masks", "weights", "state"))
    assert same(ranks[0][f"{name}/resume"]["again"]["masks"], ranks[1][f"{name}/resume"]["again"]["masks"])


def test_each_rank_gets_its_own_random_state_back(ranks):
    runs = [rank["set/resume"] for rank in ranks]
    assert all(same(run["whole"]["random"], run["again"]["random"]) for run in runs)
    assert not same(runs[0]["again"]["random"], runs[1]["again"]["random"])
