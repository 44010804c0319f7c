"""Two processes that look at data choose one set of masks, that of a single process; tickets go back alike."""

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


def on_a_rank(rank, folder):
    pair = {"strategy": "ddp", "devices": 2}
    found = {name: masks(name, **pair) for name in CASES}
    return found | {"sharded": sharded(4, **pair), "tickets": tickets(rank, **pair)}


@pytest.fixture(scope="module")
def ranks(pair):
    """What both ranks found."""
    return pair.results(Path(__file__))


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
