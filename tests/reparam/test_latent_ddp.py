"""Two processes agree on masks, weights and what is learned beside them, and are one process with twice the batch.

    LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/reparam/test_latent_ddp.py FOLDER  # and with 1
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import DENSITY, Recorder, loader, net, same, samples, trainer, weights
from latents import LATENT, close
from torch.utils.data import DistributedSampler

from lightning_sparse import MaskUpdater

pytestmark = pytest.mark.ddp
N = 64


def run(name: str, processes: int) -> dict:
    """Weights, masks and what is learned beside the weights, after eight steps of the same eight samples each."""
    every_other = {"rank": int(os.environ.get("LOCAL_RANK", 0)), "shuffle": False}
    sampler = DistributedSampler(samples(N), 2, **every_other) if processes == 2 else None
    updater, model = MaskUpdater(LATENT[name], DENSITY), net()
    recorder = Recorder(updater)
    settings = {"strategy": "ddp", "devices": 2} if processes == 2 else {}
    fit = trainer([updater, recorder], max_epochs=1, use_distributed_sampler=False, **settings)
    fit.fit(model, loader(8 // processes, N, sampler=sampler))
    learned = {f"{p.name}/{key}": value for p in updater.sparsifier.params.values() for key, value in p.state.items()}
    return {"weights": weights(model), "masks": updater.masks, "learned": learned, "leaks": recorder.leaks}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    ours = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    pair = [subprocess.Popen(command, env={**os.environ, **ours, "LOCAL_RANK": str(i)}, **pipes) for i in (0, 1)]
    try:
        errors = [process.communicate(timeout=240)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", LATENT)
def test_ranks_agree_bit_for_bit(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert (first["leaks"], second["leaks"]) == (0, 0)
    assert all(same(first[part], second[part]) for part in ("weights", "masks", "learned"))


@pytest.mark.parametrize("name", LATENT)
def test_two_processes_are_one_with_twice_the_batch(ranks, name):
    one = run(name, 1)
    for part in ("weights", "learned"):
        for key, value in one[part].items():
            close(ranks[0][name][part][key], value, atol=1e-4)
    assert same(one["masks"], ranks[0][name]["masks"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save({name: run(name, 2) for name in LATENT}, Path(sys.argv[1]) / f"{os.environ['LOCAL_RANK']}.pt")
