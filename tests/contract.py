"""The algorithms under contract, and one recorded run of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from helpers import DENSITY, SIZES, TOTAL, Net, Recorder, net, saver, state_tensors, stateful, trainer, weights
from torch import Tensor

from lightning_sparse import (
    GMP,
    SET,
    Algorithm,
    DropGrow,
    MaskUpdater,
    RigL,
    SparseMomentum,
    SparseParam,
    Sparsifier,
    Static,
)


@dataclass(frozen=True)
class Saliency(DropGrow):
    """A user's own: drop what matters least to first order, grow where the gradient is largest."""

    def drop_score(self, p: SparseParam) -> Tensor:
        return (p.weight * p.grad).abs()

    def grow_score(self, p: SparseParam) -> Tensor:
        return p.grad.abs()


class Case(NamedTuple):
    """An algorithm with what it keeps: the counts of its layers, their total, or a ramp of the total."""

    algorithm: Algorithm
    keeps: Literal["layers", "total", "ramp"] = "layers"
    moves: bool = True


WHEN = {"every": 3, "stop": 1.0}
CASES = {
    "static": Case(Static(), moves=False),
    "set": Case(SET(**WHEN)),
    "set_original": Case(SET(variant="original", every=3)),
    "rigl": Case(RigL(**WHEN)),
    "rigl_regrow_dropped": Case(RigL(regrow_dropped=True, **WHEN)),
    "rigl_replace_step": Case(RigL(replace_step=True, **WHEN)),
    "sparse_momentum": Case(SparseMomentum(every=3), keeps="total"),
    "gmp": Case(GMP(every=3, stop=9), keeps="ramp"),
    "saliency": Case(Saliency(**WHEN)),
}
SAMPLES, BATCH, EPOCHS = 56, 4, 2  # 14 steps an epoch, or 7 with two batches accumulated


def budget(case: Case, step: int) -> int:
    """Live weights in total after ``step``, by eq. 1 of Zhu & Gupta for the ramp (begin 0, stop 9, every 3)."""
    if case.keeps != "ramp":
        return TOTAL
    progress = min(step // 3 * 3, 9) / 9
    return round(TOTAL + (sum(SIZES.values()) - TOTAL) * (1 - progress) ** 3)


class Run(NamedTuple):
    """What is left of a fit."""

    case: Case
    updater: MaskUpdater
    recorder: Recorder
    model: Net
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    state: dict[str, Tensor]
    folder: Path


def train(name: str, optimizer: str, accumulate: int, folder: Path, *, start: Path | None = None, seed: int = 1) -> Run:
    """Two epochs with dropout and shuffling; a checkpoint after every second and every seventh optimizer step."""
    case = CASES[name]
    updater = MaskUpdater(case.algorithm, DENSITY)
    recorder = Recorder(updater)
    savers = [saver(folder / str(n), n) for n in (2, 7)]
    model = net(optimizer, dropout=0.25, seed=seed)
    fit = trainer(
        [updater, recorder, *savers],
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=True,
    )
    fit.fit(model, stateful(BATCH, SAMPLES, shuffle=True), ckpt_path=start)
    state = {key: value.clone() for key, value in state_tensors(fit.optimizers[0]).items()}
    masks = {key: mask.clone() for key, mask in updater.masks.items()}
    return Run(case, updater, recorder, model, weights(model), masks, state, folder)


class Loop(NamedTuple):
    """A run without Lightning, ready to step."""

    model: Net
    optimizer: torch.optim.Optimizer
    sparsifier: Sparsifier


def loop(name: str, optimizer: str, accumulate: int = 1) -> Loop:
    """The engine in a plain PyTorch loop, told the same lengths as Lightning would tell it."""
    model = net(optimizer)
    stepper = model.configure_optimizers()
    epoch = SAMPLES // BATCH // accumulate
    lengths = {"total_steps": EPOCHS * epoch, "epoch_steps": epoch}
    return Loop(model, stepper, Sparsifier(model, CASES[name].algorithm, DENSITY, optimizers=[stepper], **lengths))

