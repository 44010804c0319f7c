"""Two processes that look at data choose one set of masks, that of a single process; tickets go back alike.

    LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python test_data_ddp.py FOLDER    # and the same with 1
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import loader, net, same, samples, trainer, weights
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from lightning_sparse import SNIP, GlobalMagnitude, GraSP, MaskUpdater, SynFlow

pytestmark = pytest.mark.ddp


class Shards(IterableDataset):
    """Rank r of n reads the samples r, r + n, r + 2n ..."""

    def __iter__(self):
        alike = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if alike else (0, 1)
        data = samples(48)
        yield from (data[i] for i in range(rank, 48, size))


def subset():
    return SubsetRandomSampler(range(8), torch.Generator().manual_seed(3))


DATA = {
    "shuffled": lambda batch: loader(batch, shuffle=True),
    "held out": lambda batch: loader(batch, sampler=subset()),
}
CASES = {
    "snip": (SNIP(batches=2), "shuffled", 0.0),
    "snip with dropout": (SNIP(), "shuffled", 0.5),
    "snip on a sampler": (SNIP(batches=2), "held out", 0.0),
    "grasp": (GraSP(samples=3), "shuffled", 0.0),
    "synflow": (SynFlow(iterations=5), "shuffled", 0.0),
}


def masks(name, **settings):
    algorithm, data, dropout = CASES[name]
    updater = MaskUpdater(algorithm, 0.25)
    trainer([updater], max_steps=1, **settings).fit(net(dropout=dropout), DATA[data](4))
    return {key: mask.clone() for key, mask in updater.masks.items()}


def sharded(batch, **settings):
    """Batches are halves of those that a single process reads."""
    updater = MaskUpdater(SNIP(batches=3), 0.25)
    trainer([updater], max_steps=1, **settings).fit(net(), DataLoader(Shards(), batch_size=batch))
    return {key: mask.clone() for key, mask in updater.masks.items()}


def tickets(rank, **settings):
    """Lottery tickets on ranks whose random states and running statistics are not alike."""
    updater, model = MaskUpdater(GlobalMagnitude(rounds=2, stop=8, rewind=2), 0.25), net("adamw", seed=rank, dropout=0.2)  # noqa: E501
    model.net.insert(1, nn.BatchNorm2d(6))
    trainer([updater], max_steps=12, **settings).fit(model, loader(4, shuffle=True))
    learned = {name: value.detach().clone() for name, value in model.named_parameters()}
    return {"masks": updater.masks, "weights": learned, "all": weights(model), "rewinds": updater.sparsifier.rewinds}


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(1)
    pair = {"strategy": "ddp", "devices": 2}
    found = {name: masks(name, **pair) for name in CASES}
    found["sharded"] = sharded(4, **pair)
    found["tickets"] = tickets(rank, **pair)
    torch.save(found, folder / f"{rank}.pt")


def environment(rank, port):
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), str(root / "tests"), os.environ.get("PYTHONPATH")]))
    ours = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    return {**os.environ, **ours, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks found, from one pair of processes."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    pair = [subprocess.Popen(command, env=environment(rank, port), **pipes) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=240)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_choose_the_masks_of_a_single_process(ranks, name):
    alone = masks(name)
    assert sum(int(mask.sum()) for mask in alone.values()) == 532
    assert same(ranks[0][name], ranks[1][name])
    assert same(ranks[0][name], alone)


def test_ranks_that_read_other_samples_choose_by_all_of_them(ranks):
    assert same(ranks[0]["sharded"], ranks[1]["sharded"])
    assert same(ranks[0]["sharded"], sharded(8))
    assert not same(ranks[0]["sharded"], sharded(4))  # what a rank alone would choose


def test_tickets_go_back_to_one_state_on_all_ranks(ranks):
    first, second = (rank["tickets"] for rank in ranks)
    assert first["rewinds"] == second["rewinds"] == 2
    assert same(first["masks"], second["masks"])
    assert same(first["weights"], second["weights"])
    assert not same(first["all"], second["all"]), "running statistics were alike: the ranks saw the same"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
