"""Two processes agree on masks, weights and what is learned beside them, and are one process with twice the batch."""

import os
from pathlib import Path

import pytest
from helpers import DENSITY, Recorder, loader, net, same, samples, trainer, weights
from latents import LATENT, close
from torch.utils.data import DistributedSampler

from lightning_sparse import MaskUpdater

# thresholds and gates are to be compared while they are in use
pytestmark = [pytest.mark.ddp, pytest.mark.filterwarnings("ignore:.*before the final density.*")]
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


def on_a_rank(rank: int, folder: Path) -> dict:
    return {name: run(name, 2) for name in LATENT}


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    return pair.results(Path(__file__))


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
