"""Two processes that average gradients have one model and one set of masks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_runs import ALGORITHMS, LAYOUTS, compare
from helpers import same

pytestmark = pytest.mark.ddp


def environment(rank: int, port: int) -> dict[str, str]:
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    ours = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    return {**os.environ, **ours, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """The results of both ranks, from one pair of processes."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "ddp_runs.py"), str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    pair = [subprocess.Popen(command, env=environment(rank, port), **pipes) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=240)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


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
