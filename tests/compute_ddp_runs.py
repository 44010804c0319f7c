"""What the two processes of test_compute_ddp do: every scenario once."""

from pathlib import Path

import torch
from ddp_runs import ddp
from helpers import DENSITY, digest, loader, net, saver, state_tensors, trainer, weights
from lightning.pytorch import Callback

from lightning_sparse import GMP, SET, MaskUpdater, RigL

ALGORITHMS = {"rigl": RigL(every=3, stop=1.0), "set": SET(every=3, stop=1.0), "gmp": GMP(every=3)}
ACCUMULATED = {"rigl": 2, "set": 1, "gmp": 2}


class Masks(Callback):
    """The masks after every batch, and how many numbers the parameters have."""

    def __init__(self, updater):
        self.updater, self.found, self.numbers, self.kinds = updater, [], 0, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.found.append(digest(self.updater.masks))
        self.kinds.append(",".join(type(module).__name__ for module in pl_module.modules()))
        self.numbers = sum(p.numel() for p in pl_module.parameters())


def run(name: str, compute: str, rank: int, folder: Path | None = None, start: Path | None = None) -> dict:
    """Each rank starts from other weights and sees other samples."""
    updater, model = MaskUpdater(ALGORITHMS[name], DENSITY, compute=compute), net("adamw", seed=rank).double()
    masks, keep = Masks(updater), [saver(folder, 6)] if folder else []
    settings = {"accumulate_grad_batches": ACCUMULATED[name], "precision": "64-true", "max_epochs": 2, **ddp()}
    fit = trainer([updater, masks, *keep], enable_checkpointing=bool(keep), **settings)
    fit.fit(model, loader(4, 96), ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    ends = {"masks": masks.found, "weights": weights(model), "state": state}
    return {**ends, "numbers": masks.numbers, "kinds": masks.kinds}


def on_a_rank(rank: int, folder: Path) -> dict:
    results = {f"{name}/{compute}": run(name, compute, rank) for name in ALGORITHMS for compute in ("sparse", "dense")}
    results["auto"] = run("gmp", "auto", rank)
    results["whole"] = run("rigl", "sparse", rank, folder / "whole")
    results["again"] = run("rigl", "sparse", rank + 50, folder / "whole", folder / "whole" / "step=6.ckpt")
    torch.distributed.barrier()
    return results
