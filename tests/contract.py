"""The algorithms under contract, the settings that each is held to it in, and one recorded run of each."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from helpers import (
    DENSITY,
    SIZES,
    TOTAL,
    Net,
    Recorder,
    loader,
    net,
    samples,
    state_tensors,
    stateful,
    trainer,
    weights,
)  # fmt: skip
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from lightning_sparse import (
    ACDC,
    DSR,
    GMP,
    L0,
    MEST,
    SET,
    SNIP,
    SRSTE,
    STR,
    Algorithm,
    DropGrow,
    GlobalMagnitude,
    GraNet,
    GraSP,
    MaskUpdater,
    RigL,
    SparseMomentum,
    SparseParam,
    Sparsifier,
    SRigL,
    Static,
    SynFlow,
    TopKAST,
)


@dataclass(frozen=True)
class Saliency(DropGrow):
    """A user's own: drop what matters least to first order, grow where the gradient is largest."""

    def drop_score(self, p: SparseParam) -> Tensor:
        return (p.weight * p.grad).abs()

    def grow_score(self, p: SparseParam) -> Tensor:
        return p.grad.abs()


class Case(NamedTuple):
    """An algorithm with what it keeps: ERK's counts of layers, its own ones, their total, or a ramp of the total.

    Where weights are latent, the optimizer's state is that of the latent ones: it is dense until they have settled.
    """

    algorithm: Algorithm
    keeps: Literal["layers", "own layers", "total", "ramp"] = "layers"
    moves: bool = True
    totals: Callable[[int], int] | None = None  # of a ramp: live weights after a step
    latent: bool = False


def soft_total(step: int) -> int:
    """Of 48, 398 and 86 (at most 100 there) 0.2 on top, from step 9 on 0.1, from step 12 on nothing."""
    return 48 + 9 + 398 + 79 + 100 if step < 9 else 48 + 4 + 398 + 39 + 86 + 8 if step < 12 else TOTAL


def granet_total(step: int) -> int:
    """From half of all weights along eq. 1 of Zhu & Gupta, to step 9."""
    return round(TOTAL + (1064 - TOTAL) * (1 - min(step // 3 * 3, 9) / 9) ** 3)


def ticket_total(step: int) -> int:
    """Three rounds to a quarter: after step 3 0.63 of 2128 weights live, after 6 0.397, after 9 a quarter."""
    return [2128, 1341, 844, TOTAL][min(step // 3, 3)]


WHEN = {"every": 3, "stop": 1.0}
CASES = {
    "static": Case(Static(), moves=False),
    "set": Case(SET(**WHEN)),
    "set_original": Case(SET(variant="original", every=3)),
    "rigl": Case(RigL(**WHEN)),
    "rigl_regrow_dropped": Case(RigL(regrow_dropped=True, **WHEN)),
    "rigl_replace_step": Case(RigL(replace_step=True, **WHEN)),
    "sparse_momentum": Case(SparseMomentum(every=3), keeps="total"),
    "dsr": Case(DSR(threshold=0.02, **WHEN), keeps="total"),
    "mest": Case(MEST(**WHEN)),
    "mest_soft": Case(MEST(variant="em_s", every=3, stop=12), keeps="ramp", totals=soft_total),
    "srigl": Case(SRigL(**WHEN)),
    "gmp": Case(GMP(every=3, stop=9), keeps="ramp"),
    "granet": Case(GraNet(end=9, **WHEN), keeps="ramp", totals=granet_total),
    "acdc": Case(
        ACDC(begin=3, every=6, stop=12, last=3), keeps="ramp", totals=lambda s: TOTAL if 3 <= s < 9 or s >= 12 else 2128
    ),
    "snip": Case(SNIP(), keeps="own layers", moves=False),
    "grasp": Case(GraSP(samples=4), keeps="own layers", moves=False),
    "synflow": Case(SynFlow(iterations=5), keeps="own layers", moves=False),
    "global_magnitude": Case(GlobalMagnitude(rounds=3, stop=9), keeps="ramp", totals=ticket_total),
    "lottery_ticket": Case(GlobalMagnitude(rounds=3, stop=9, rewind="init"), keeps="ramp", totals=ticket_total),
    "late_ticket": Case(
        GlobalMagnitude(rounds=3, stop=9, rewind=2, rewind_schedule=True), keeps="ramp", totals=ticket_total
    ),
    "str": Case(STR(every=3, stop=9), keeps="ramp", latent=True),
    "l0": Case(L0(every=3, begin=0, stop=9, lr=0.05), keeps="ramp", latent=True),
    "l0_unit": Case(L0(every=3, begin=0, stop=9, lr=0.05, gates="unit"), keeps="ramp", latent=True),
    "topkast": Case(TopKAST(**WHEN), latent=True),
    "srste": Case(SRSTE(**WHEN), latent=True),
    "saliency": Case(Saliency(**WHEN)),
}
# One for each way through the engine: these meet every setting with every other. The rest meet every setting at least
# once, in pairs that turn from case to case; what is left of the matrix is slow.
PATHS = {
    "static": "masks that never move",
    "rigl": "fixed counts, by the dense gradient",
    "rigl_replace_step": "an update in the place of a step",
    "sparse_momentum": "a budget that moves between layers, and a look at every step",
    "granet": "a ramp that regrows",
    "snip": "masks chosen by data at the start",
    "late_ticket": "weights and a schedule that go back",
    "str": "latent weights",
    "l0": "latent weights with noise",
}
OPTIMIZERS, ACCUMULATED = ("sgd", "adamw"), (1, 2)


def matrix(first: tuple, second: tuple) -> list:
    """Parameters for pytest: all cases crossed with two settings; slow where neither path nor turn asks for them."""
    cells = []
    for turn, name in enumerate(CASES):
        longest = max(len(first), len(second))
        pairs = {(first[i % len(first)], second[(i + turn) % len(second)]) for i in range(longest)}
        for pair in product(first, second):
            marks = [] if name in PATHS or pair in pairs else [pytest.mark.slow]
            cells.append(pytest.param(name, *pair, marks=marks))
    return cells


SAMPLES, BATCH, EPOCHS = 56, 4, 2  # 14 steps an epoch, or 7 with two batches accumulated


def budget(case: Case, step: int) -> int:
    """Live weights in total after ``step``, by eq. 1 of Zhu & Gupta for the ramp (begin 0, stop 9, every 3)."""
    if case.keeps != "ramp":
        return TOTAL
    if case.totals is not None:
        return case.totals(step)
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


def steps(accumulate: int) -> int:
    return EPOCHS * SAMPLES // BATCH // accumulate


def stops(accumulate: int) -> dict[str, int]:
    """After which optimizer steps a run can go on."""
    return {"on an update": 6, "epoch end": steps(accumulate) // 2, "second epoch": steps(accumulate) - 4}


class Saver(ModelCheckpoint):
    """Lightning's own, after these optimizer steps alone."""

    def __init__(self, folder: Path, after: set[int]) -> None:
        super().__init__(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        self.after = after

    def on_train_batch_end(self, trainer, *rest) -> None:
        if trainer.global_step in self.after:
            super().on_train_batch_end(trainer, *rest)


def train(name: str, optimizer: str, accumulate: int, folder: Path, *, start: Path | None = None, seed: int = 1) -> Run:
    """Two epochs with dropout and shuffling; checkpoints where a run can go on, unless it goes on from one itself."""
    case = CASES[name]
    updater = MaskUpdater(case.algorithm, DENSITY)
    recorder = Recorder(updater)
    after = set() if start else set(stops(accumulate).values())
    model = net(optimizer, dropout=0.25, seed=seed)
    fit = trainer(
        [updater, recorder, Saver(folder, after)],
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
    order = torch.Generator().manual_seed(0)  # that of a MaskUpdater whose seed is 0
    data = {
        "batches": loader(BATCH, SAMPLES, shuffle=True, generator=order),
        "loss": lambda model, batch: F.cross_entropy(model.net(batch[0]), batch[1]),
        "example_inputs": samples(1)[0][0][None],
    }
    algorithm = CASES[name].algorithm
    return Loop(model, stepper, Sparsifier(model, algorithm, DENSITY, optimizers=[stepper], **lengths, **data))

