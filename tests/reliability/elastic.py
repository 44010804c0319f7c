"""What the processes of test_elastic do under torchrun, which starts all again when one has died.

    PYTHONPATH=.:tests torchrun --standalone --nproc-per-node 2 --max-restarts 1 tests/reliability/elastic.py FOLDER

In their first life the second of them is killed. In the next they go on from the last checkpoint; then they train once
more without a break, to compare with.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import DENSITY, digest, net, samples, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

from lightning_sparse import SET, MaskUpdater

ALGORITHM = SET(every=3, stop=1.0)  # grows at random, and moves after steps 9, 12 ... 21, after the last checkpoint
DEATH = 9  # steps taken by then, of twenty-four; the last checkpoint is that of the eighth


class Watch(Callback):
    """The masks before the first step, and after each one, by its number."""

    def __init__(self, updater: MaskUpdater) -> None:
        self.updater, self.masks = updater, {}

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.masks.setdefault(trainer.global_step, digest(self.updater.masks))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.masks[trainer.global_step] = digest(self.updater.masks)


class Kill(Callback):
    """Ends this very process, as the kernel does when memory runs out; the other is left waiting for it."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == DEATH:
            os.kill(os.getpid(), signal.SIGKILL)


def fitted(folder: Path, seed: int, *others: Callback, start: Any = None, **settings: Any) -> dict[str, Any]:
    """Two epochs of twelve steps on two processes; a checkpoint after every second step, and a copy of the last.

    The death is in the first epoch: in the middle of a later one Lightning would go on with the first one's order of
    samples, as it tells the sampler its epoch only after the loader has gone on. The sampler is made here, as Lightning
    would wrap torchdata's own, whose order no rank could find again.
    """
    updater, model = MaskUpdater(ALGORITHM, DENSITY), net("adamw", 0.25, seed=seed)
    watch = Watch(updater)
    keep = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
    settings |= {"max_epochs": 2, "enable_checkpointing": True, "use_distributed_sampler": False}
    fit = trainer([updater, watch, *others, keep], **settings)
    sampler = DistributedSampler(samples(192), settings.get("devices", 1), int(os.environ.get("RANK", "0")))
    fit.fit(model, stateful(8, 192, sampler=sampler), ckpt_path=start)
    random = {"torch": torch.get_rng_state()}
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    return {"moves": watch.masks, "masks": updater.masks, "weights": weights(model), "state": state, "random": random}


def main() -> None:
    """One life of one process."""
    folder, rank, life = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (folder / f"life{life}-{rank}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    job = {"strategy": "ddp", "devices": 2}
    killers = [Kill()] if life == 0 and rank == 1 else []
    again = fitted(folder / "again", 50 * life + rank, *killers, start="last", **job)
    whole = fitted(folder / "whole", rank, **job)
    torch.save({"again": again, "whole": whole}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
