"""What the two processes of test_bn_channel_pruner_synced do, and one process with batches as big as both of theirs."""

from pathlib import Path

import torch
from helpers import loader, samples, state_tensors, trainer, weights
from lightning.pytorch import Callback
from pruned import net, pruner
from synced import on_the_cpu
from torch import nn
from torch.utils.data import DistributedSampler

PAIR = {"strategy": "ddp", "devices": 2, "sync_batchnorm": True, "use_distributed_sampler": False}


class Kinds(Callback):
    """Which norms trained."""

    def on_train_start(self, trainer, pl_module):
        self.found = sorted({type(each).__name__ for each in pl_module.modules() if hasattr(each, "running_var")})


def pruned(data, shrink: str = "live", **settings) -> dict:
    cut, kinds, model = pruner(0.4, at=[1, 2], shrink=shrink, batches=12), Kinds(), net()  # all data, of both sizes
    fit = trainer([cut, kinds], max_epochs=3, precision="64-true", **settings)
    fit.fit(model, data)
    left = {"weights": weights(model), "state": {k: v.clone() for k, v in state_tensors(fit.optimizers[0]).items()}}
    left["kept"] = {f"{name}/{dim}": index for name, dims in cut.recipe.kept.items() for dim, index in dims.items()}
    norms = {name: each for name, each in model.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}
    model.eval()
    with torch.no_grad():
        says = model(samples(8)[:][0].double())
    return left | {"kinds": kinds.found, "widths": {n: each.num_features for n, each in norms.items()}, "says": says}


def one() -> dict:
    return pruned(loader(8))


def on_a_rank(rank: int, folder: Path) -> dict:
    """Rank r takes samples r, r + 2 ...: batches of four, eight together."""
    sampler = DistributedSampler(samples(), 2, rank, shuffle=False)
    with on_the_cpu():
        return {shrink: pruned(loader(4, sampler=sampler), shrink, **PAIR) for shrink in ("live", "end")}
