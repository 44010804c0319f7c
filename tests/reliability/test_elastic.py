"""A job of several processes of which one is killed starts again and goes on, under torchrun as users have it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from elastic import DEATH, fitted
from helpers import DENSITY, SIZES, TOTAL, same

pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.filterwarnings("ignore:The dirpath has changed")]
HERE = Path(__file__).parent
PARTS = ("masks", "weights", "state", "random")
MINUTES = 10  # on machines that are busy
LAST = DEATH - 1  # the step of the last checkpoint


def ended(agent: subprocess.Popen) -> str:
    """What torchrun said until it was done, or too slow; then it has time to end its workers."""
    try:
        return agent.communicate(timeout=60 * MINUTES)[0]
    except subprocess.TimeoutExpired:
        agent.terminate()
        return "too slow\n" + agent.communicate(timeout=60)[0]
    finally:
        agent.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a job of two processes left, one of which was killed."""
    folder = tmp_path_factory.mktemp("elastic")
    places = [HERE.parents[1], HERE.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    # A store for each life: in the one that torchrun shares (torch 2.13), gloo would find the addresses of the dead.
    ours = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ours["PYTHONPATH"] = os.pathsep.join(map(str, places))
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [*run, "--nproc-per-node", "2", "--max-restarts", "1", str(HERE / "elastic.py"), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    agent = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore", **ours}, **pipes)
    said = ended(agent)
    assert agent.returncode == 0, said[-6000:]
    assert f"-{signal.SIGKILL.value}" in said, f"nobody was killed:\n{said[-6000:]}"
    return folder


@pytest.fixture
def ranks(folder) -> list[dict]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_a_job_that_torchrun_starts_again_ends_bit_for_bit_as_the_uninterrupted_one(ranks):
    for rank in ranks:
        whole, again = rank["whole"], rank["again"]
        assert list(whole["moves"]) == list(range(25))
        assert list(again["moves"]) == list(range(LAST, 25)), "it went on from somewhere else"
        assert again["moves"] == {step: masks for step, masks in whole["moves"].items() if step >= LAST}
        assert len(set(again["moves"].values())) == 6, "masks move after the steps 9, 12, 15, 18 and 21"
        assert all(same(whole[part], again[part]) for part in PARTS)
    zero, one = (rank["again"] for rank in ranks)
    assert same(zero["masks"], one["masks"])
    assert same(zero["weights"], one["weights"])
    assert not same(zero["random"], one["random"]), "the ranks were alike: random states tell nothing"


def test_no_process_of_the_job_is_left(folder):
    pids = {path.name: int(path.read_text()) for path in folder.glob("life*")}
    assert sorted(pids) == ["life0-0", "life0-1", "life1-0", "life1-1"]
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_process_goes_on_from_the_checkpoint_of_two(folder, ranks, tmp_path):
    again = fitted(tmp_path, 9, start=folder / "again" / f"step={LAST}.ckpt")
    assert again["moves"][LAST] == ranks[0]["whole"]["moves"][LAST]
    assert list(again["moves"]) == list(range(LAST, 49)), "twenty-four steps an epoch now, of which eight were taken"
    assert len(set(again["moves"].values())) >= 10
    assert sum(SIZES.values()) * DENSITY == TOTAL == sum(int(mask.sum()) for mask in again["masks"].values())
    assert not any(bool(again["weights"][name][~mask].any()) for name, mask in again["masks"].items())
