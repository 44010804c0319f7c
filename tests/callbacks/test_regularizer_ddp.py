"""Two processes pay what one pays."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import same
from penalized_ddp import PENALTIES, run

pytestmark = pytest.mark.ddp
SCRIPT = Path(__file__).parents[1] / "penalized_ddp.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """The results of both ranks, from one pair of processes."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH")]))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    shared |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    pair = [subprocess.Popen(command, env={**os.environ, **shared, "LOCAL_RANK": rank}, **pipes) for rank in "01"]
    try:
        errors = [process.communicate(timeout=240)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_does_not_depend_on_how_a_batch_is_split(ranks, name):
    alone = run(name, 16)
    for first, second in zip(ranks[0][name], ranks[1][name], strict=True):
        assert same(first, second)
        for key, value in alone.items():
            torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9)
