"""What the processes of test_distributed do: every scenario once, results in files.

    LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python ranks.py FOLDER     # and the same with LOCAL_RANK=1
    python ranks.py FOLDER launch                  # starts two workers each way: forked, as in a notebook, spawned
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (0, 1)]

import torch  # noqa: E402
from helpers import DENSITY, Net, digest, loader, net, samples, trainer, weights  # noqa: E402
from lightning.pytorch import Callback  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402
from runs import MOVING, RANDOM, leaks, run  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook  # noqa: E402
from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DistributedSampler  # noqa: E402

from lightning_sparse import DensityLogger, MaskUpdater, RigL, Static  # noqa: E402

PAIR = {"strategy": "ddp", "devices": 2}
EVERY_STEP = RigL(every=1, stop=1.0)
LAUNCHERS = ("ddp_fork", "ddp_notebook", "ddp_spawn")
CALLS = ("all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "broadcast", "barrier")


def kept(fit) -> dict:
    """What is compared of a run."""
    masks = {name: mask.clone() for name, mask in fit.updater.masks.items()}
    seen = fit.recorder.leaks + leaks(fit.model, masks)
    return {"masks": masks, "steps": fit.recorder.masks, "leaks": seen, "weights": weights(fit.model)}


def random(rank: int, folder: Path) -> dict:
    """Random growth, dropout, and random states of their own."""
    fit = run(RANDOM, model=net("adamw", 0.25, seed=rank), max_epochs=2, **PAIR)
    return {**kept(fit), "random": torch.get_rng_state()}


def averaged(rank: int, folder: Path) -> dict:
    """Rank r takes samples r, r + 2 ..., two batches of four a step: sixteen samples, as `one process` below."""
    data = loader(4, 96, sampler=DistributedSampler(samples(96), 2, rank, shuffle=False))
    return kept(run(EVERY_STEP, data=data, accumulate_grad_batches=2, use_distributed_sampler=False, **PAIR))


def first(rank: int, folder: Path) -> dict:
    """Weights differ until DDP sends those of rank zero."""
    return kept(run(Static(), model=net(seed=rank), masks={"init": "magnitude"}, max_epochs=-1, max_steps=1, **PAIR))


def hooked(rank: int, folder: Path) -> dict:
    """Gradients in float16 on the way, in buckets, under a static graph."""
    strategy = DDPStrategy(static_graph=True, gradient_as_bucket_view=True, ddp_comm_hook=fp16_compress_hook)
    return kept(run(MOVING, max_epochs=2, devices=2, strategy=strategy))


class Skipping(Net):
    """Of three steps one trains the large layer on no rank, one on the second rank only."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 3 == 0 or (batch_idx % 3 == 1 and self.global_rank == 0):
            x = F.linear(self.net[:4](batch[0]), self.net[4].weight.detach(), self.net[4].bias.detach())
            return F.cross_entropy(self.net[5:](x), batch[1])
        return super().training_step(batch, batch_idx)


def unused(rank: int, folder: Path) -> dict:
    """Parameters that some steps do not use, on one rank or on both."""
    torch.manual_seed(1)
    strategy = DDPStrategy(find_unused_parameters=True)
    return kept(run(MOVING, model=Skipping(), max_epochs=2, devices=2, strategy=strategy))


def sharded(rank: int, folder: Path) -> dict:
    """Each rank steps its share of the weights."""
    model = net()
    model.configure_optimizers = lambda: ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-2, weight_decay=0.1
    )
    return kept(run(MOVING, model=model, max_epochs=2, **PAIR))


def logged(rank: int, folder: Path) -> dict:
    """Everything that speaks on rank zero only; which collectives each rank took part in."""
    took, plain = [], {name: getattr(torch.distributed, name) for name in CALLS}

    def noted(name):
        def call(*args, **kwargs):
            took.append(name)
            return plain[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(torch.distributed, name, noted(name))
    keep = ModelCheckpoint(dirpath=folder / "kept", every_n_train_steps=2, save_top_k=-1)
    others = [DensityLogger(1, images=True, histograms=True), keep]
    settings = {"logger": CSVLogger(folder), "enable_checkpointing": True, **PAIR}
    fit = run(MOVING, "sgd", *others, **settings)
    for name, call in plain.items():
        setattr(torch.distributed, name, call)
    return {**kept(fit), "took": took}


SCENARIOS = [random, averaged, first, hooked, unused, sharded, logged]


class Tells(Callback):
    """Each worker writes down its masks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        (updater,) = [c for c in trainer.callbacks if isinstance(c, MaskUpdater)]
        (self.folder / f"worker{trainer.global_rank}").write_text(digest(updater.masks))


def launch(folder: Path, strategy: str) -> None:
    """What is left in the process that has started the workers."""
    updater, model = MaskUpdater(RANDOM, DENSITY), net()
    trainer([updater, Tells(folder)], max_epochs=1, strategy=strategy, devices=2).fit(model, loader())
    try:
        updater.density()
        said = ""
    except RuntimeError as error:
        said = str(error)
    torch.save({"weights": weights(model), "masks": updater.masks, "said": said}, folder / "left.pt")


def main(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.save({scenario.__name__: scenario(rank, folder) for scenario in SCENARIOS}, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:]:
        for way in LAUNCHERS:
            (own := Path(sys.argv[1]) / way).mkdir()
            launch(own, way)
    else:
        main(Path(sys.argv[1]))
