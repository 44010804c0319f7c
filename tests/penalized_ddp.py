"""What the two processes of test_regularizer_ddp do."""

import os
from pathlib import Path

from helpers import loader, samples, weights
from penalized import fitted
from torch.utils.data import DistributedSampler

from lightning_sparse import Regularizer

PENALTIES = {"gradient": {}, "proximal": {"proximal": True}, "activations": {"on": "activations"}}
SAMPLES = 96


def run(name: str, batch: int, *, processes: int = 1, accumulate: int = 1) -> dict:
    """Weights after an epoch; each step sees the same sixteen samples however they are split."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    settings = {"strategy": "ddp", "devices": 2} if processes == 2 else {}
    sampler = DistributedSampler(samples(SAMPLES), 2, rank, shuffle=False) if processes == 2 else None
    settings |= {"precision": "64-true", "use_distributed_sampler": False, "accumulate_grad_batches": accumulate}
    data = loader(batch, SAMPLES, sampler=sampler)
    return weights(fitted([Regularizer("l1", 1e-2, **PENALTIES[name])], data=data, **settings)[0])


def on_a_rank(rank: int, folder: Path) -> dict:
    return {name: [run(name, 8, processes=2), run(name, 4, processes=2, accumulate=2)] for name in PENALTIES}
