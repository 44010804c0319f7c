"""What the two processes of test_ddp do: every scenario once."""

import os
from pathlib import Path

import torch
from helpers import DENSITY, Recorder, loader, net, samples, saver, state_tensors, trainer, weights
from torch.utils.data import DistributedSampler, Sampler

from lightning_sparse import SET, MaskUpdater, RigL, SparseMomentum, Static

ALGORITHMS = {"rigl": RigL(every=3, stop=1.0), "momentum": SparseMomentum(every=3)}
LAYOUTS = {"16": (16, 1, 1), "8x2": (8, 2, 1), "2x8": (8, 1, 2), "2x4x2": (4, 2, 2)}  # batch, accumulated, processes
SAMPLES, EPOCHS = 96, 3


def compare(name: str, layout: str) -> dict:
    """Masks after every step; each step sees the same sixteen samples in every layout."""
    batch, accumulate, processes = LAYOUTS[layout]
    updater = MaskUpdater(ALGORITHMS[name], DENSITY)
    recorder = Recorder(updater)
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": EPOCHS, **ddp(processes)}
    model, data = net("adamw"), loader(batch, SAMPLES, sampler=every_other(processes))
    trainer([updater, recorder], use_distributed_sampler=False, **settings).fit(model, data)
    return {"masks": recorder.masks, "leaks": recorder.leaks + recorder.state_leaks}


def every_other(processes: int) -> Sampler | None:
    """Rank r takes the samples r, r + 2, r + 4 ... (Lightning's own sampler would shuffle)."""
    if processes == 1:
        return None
    return DistributedSampler(samples(SAMPLES), processes, int(os.environ["LOCAL_RANK"]), shuffle=False)


def ddp(processes: int = 2) -> dict:
    return {} if processes == 1 else {"strategy": "ddp", "devices": processes}


def diverging(algorithm, rank: int) -> dict:
    """Dropout and random states of their own on the two ranks."""
    updater, model = MaskUpdater(algorithm, DENSITY), net("adamw", dropout=0.25, seed=rank)
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=EPOCHS, **ddp()).fit(model, loader(8, SAMPLES))
    return {"masks": recorder.masks, "weights": weights(model), "random": torch.get_rng_state()}


def resumed(algorithm, folder: Path, rank: int) -> dict:
    """A whole run, and one that goes on from its sixth step, the end of its first epoch."""
    ends = {}
    for kind, start, seed in (("whole", None, rank), ("again", folder / "step=6.ckpt", 50)):
        updater, model = MaskUpdater(algorithm, DENSITY), net("adamw", dropout=0.25, seed=seed)
        fit = trainer([updater, saver(folder, 6)], max_epochs=EPOCHS, enable_checkpointing=True, **ddp())
        fit.fit(model, loader(8, SAMPLES, shuffle=True), ckpt_path=start)
        state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
        ends[kind] = {"masks": updater.masks, "weights": weights(model), "state": state}
        ends[kind]["random"] = {"torch": torch.get_rng_state()}
    return ends


def on_a_rank(rank: int, folder: Path) -> dict:
    results = {f"{name}/{layout}": compare(name, layout) for name in ALGORITHMS for layout in ("2x8", "2x4x2")}
    results["set"] = diverging(SET(every=3, stop=1.0), rank)
    results["static"] = diverging(Static(), rank)
    for name, algorithm in {**ALGORITHMS, "set": SET(every=3, stop=1.0)}.items():
        results[f"{name}/resume"] = resumed(algorithm, folder / name, rank)
    return results
