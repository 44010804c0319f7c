"""Accuracy at the published recipe: LeNet-300-100 on MNIST, 5 % density, 100 epochs, three seeds.

    python benchmarks/accuracy.py            # runs what is missing, prints the table (about 2 CPU-minutes a run)
    python benchmarks/accuracy.py --table    # only the table of what has run

Recipe of Dettmers & Zettlemoyer 2019 (https://arxiv.org/abs/1907.04840, their code's defaults): batch 100, SGD with
Nesterov momentum 0.9, learning rate 0.1 times 0.1 every 25,000 steps, L2 5e-4, 10 % of the training set held out (not
used). Every finished run is one line of results/accuracy.jsonl, with seed, versions and commit, so a killed benchmark
goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from record import Row, error, newest, read, versions
from torch import Tensor, nn
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
    CosineSchedule,
    GlobalMagnitude,
    GraNet,
    GraSP,
    RigL,
    SparseMomentum,
    Sparsifier,
    SRigL,
    Static,
    SynFlow,
    TopKAST,
)
from lightning_sparse.core.allocation import AllocationName

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "accuracy.jsonl"
EPOCHS, BATCH, TRAIN = 100, 100, 54_000
DENSITIES = [0.05, 0.02, 0.01]

EVERY = {"every": "epoch", "stop": 0.75}


class Arm(NamedTuple):
    """An algorithm (None: dense) as it is run here, and the recipe in words; the exact object is in the results."""

    algorithm: Algorithm | None
    recipe: str = ""
    allocation: AllocationName | None = None


ARMS = {
    "dense": Arm(None),
    "static": Arm(Static(), "ERK", "erk"),
    "set": Arm(SET(**EVERY, fraction=CosineSchedule(0.3)), "ERK, every epoch, fraction 0.3 cosine, until 75 %", "erk"),
    "rigl": Arm(
        RigL(**EVERY, fraction=CosineSchedule(0.3)), "ERK, every epoch, fraction 0.3 cosine, until 75 %", "erk"
    ),
    "sparse_momentum": Arm(SparseMomentum(), "uniform, every epoch, fraction 0.5 cosine to 0.005", "uniform"),
    "gmp": Arm(GMP(every=100, stop=0.75), "ERK, every 100 steps, from step 0 to 75 %", "erk"),
    "snip": Arm(SNIP(), "global, one batch"),
    "grasp": Arm(GraSP(), "global, 25 samples a class"),
    "synflow": Arm(SynFlow(), "global, 100 iterations"),
    "set (original)": Arm(SET(variant="original"), "ERK, every epoch, 0.3 of each sign, to the end", "erk"),
    "set (itop)": Arm(SET(variant="itop"), "ERK, every 1500 steps, fraction 0.5 cosine to 0.005", "erk"),
    "rigl (itop)": Arm(RigL(variant="itop"), "ERK, every 4000 steps, fraction 0.5 cosine to 0.005", "erk"),
    "dsr": Arm(DSR(), "uniform, every 100 steps, a tenth of the live weights, until 95 %"),
    "mest": Arm(MEST(), "ERK, every epoch, EM, 0.2 then 0.1", "erk"),
    "mest (soft)": Arm(MEST(variant="em_s"), "ERK, every epoch, EM&S, 0.2 then 0.1", "erk"),
    "srigl": Arm(SRigL(**EVERY), "ERK, every epoch, fraction 0.3 cosine, gamma 0.3", "erk"),
    "global_magnitude": Arm(GlobalMagnitude(), "train 50 epochs, prune, fine-tune 50"),
    "lottery ticket": Arm(
        GlobalMagnitude(rounds=4, rewind="init"), "4 rounds of 20 epochs, each from the first weights, then 20 more"
    ),
    "acdc": Arm(ACDC(), "global, phases of 5 epochs, sparse from 85"),
    "granet": Arm(GraNet(every="epoch"), "from 0.5 to epoch 69, every epoch, fraction 0.5 cosine"),
    "str": Arm(STR(), "steered along a cubic until 75 %"),
    "l0": Arm(L0(), "a gate a weight, steered along a cubic from 25 to 75 %"),
    "topkast": Arm(TopKAST(), "ERK, every 100 steps, backward twice as dense", "erk"),
    "srste": Arm(SRSTE(every=10), "ERK, unstructured, every 10 steps", "erk"),
}
LOW = ("static", "set", "rigl", "sparse_momentum", "dsr", "snip", "gmp")  # at 1 and 2 % too
# Test error %: Dettmers & Zettlemoyer 2019, the results beside their code; SNIP as they quote it.
PUBLISHED = {
    ("dense", 1.0): "1.31",
    ("set", 0.05): "1.86",
    ("set", 0.02): "2.26",
    ("set", 0.01): "4.20",
    ("sparse_momentum", 0.05): "1.53 ± 0.02",
    ("sparse_momentum", 0.02): "1.99 ± 0.02",
    ("sparse_momentum", 0.01): "2.36 ± 0.04",
    ("dsr", 0.05): "1.68",
    ("dsr", 0.02): "1.86",
    ("dsr", 0.01): "2.46",
    ("snip", 0.05): "1.6",
    ("snip", 0.02): "2.4",
}


def load(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images as normalised rows, with labels."""
    raw = np.load(path)
    x, t = (
        torch.from_numpy(raw[f"x_{part}"]).float().div(255).sub(0.1307).div(0.3081).flatten(1)
        for part in ("train", "test")
    )
    y, u = (torch.from_numpy(raw[f"y_{part}"]).long() for part in ("train", "test"))
    return x, y, t, u


def run(arm: str, density: float, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int) -> Row:
    """Train one network; the row to store."""
    torch.manual_seed(seed)
    algorithm, _, allocation = ARMS[arm]
    x, y, test_x, test_y = data
    held_in = torch.randperm(len(x))[:TRAIN]
    x, y = x[held_in], y[held_in]
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    decay = torch.optim.lr_scheduler.StepLR(optimizer, 25_000)
    total, epoch = epochs * TRAIN // BATCH, TRAIN // BATCH
    sparsifier = None
    if algorithm is not None:
        sparsifier = Sparsifier(
            net,
            algorithm,
            density,
            optimizers=[optimizer],
            allocation=allocation,
            seed=seed,
            total_steps=total,
            epoch_steps=epoch,
            batches=[(x[rows], y[rows]) for rows in torch.randperm(TRAIN).split(BATCH)[:20]],
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            example_inputs=x[:1],
        )
    start = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(BATCH):
            loss = F.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    seconds = time.process_time() - start
    with torch.no_grad():
        test_error = 100 - 100 * float((net(test_x).argmax(1) == test_y).float().mean())
    weights = sparsifier.masks.values() if sparsifier else [p for p in net.parameters() if p.ndim > 1]
    live = sum(int(w.count_nonzero()) for w in weights)
    return {
        "arm": arm,
        "algorithm": repr(algorithm),
        "recipe": ARMS[arm].recipe,
        "density": density,
        "allocation": allocation,
        "seed": seed,
        "epochs": epochs,
        "test_error": round(test_error, 3),
        "live": live,
        "seconds": round(seconds, 1),
        **versions(),
    }


def ran(arm: str, density: float, epochs: int = EPOCHS) -> list[Row]:
    """The rows of an arm, one a seed; those of another recipe under the same name are left out."""
    found = [r for r in read(RESULTS) if (r["arm"], r["density"], r["epochs"]) == (arm, density, epochs)]
    return newest([r for r in found if r.get("recipe", ARMS[arm].recipe) == ARMS[arm].recipe])


def jobs(densities: Sequence[float]) -> list[tuple[str, float]]:
    """What is to run: every arm at 5 %, the dense one at 100 %, a few at less."""
    arms = [(arm, d) for d in densities for arm in ARMS if arm != "dense" and (d == 0.05 or arm in LOW)]
    return [("dense", 1.0), *arms]


FRONT = ("dense", "static", "set", "rigl", "sparse_momentum", "gmp", "granet")  # what the README shows


def table(density: float, arms: Sequence[str] = ()) -> str:
    """What has run (of some arms), in Markdown: mean test error over the seeds, plus or minus its standard error."""
    lines = [
        "| | test error % | seeds | live weights | recipe | published |",
        "|---|---|---|---|---|---|",
    ]
    for arm, d in [job for job in jobs([density]) if not arms or job[0] in arms]:
        found, published = ran(arm, d), PUBLISHED.get((arm, d), "")
        if not found:
            lines.append(f"| {arm} | not run | | | {ARMS[arm].recipe} | {published} |")
            continue
        cells = (arm, error(found), len(found), f"{found[0]['live']:,}", ARMS[arm].recipe, published)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "examples" / "data" / "mnist.npz")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--densities", nargs="*", type=float, default=DENSITIES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load(args.data)
        for seed in args.seeds:
            for arm, density in jobs(args.densities):
                if arm in args.arms and seed not in [r["seed"] for r in ran(arm, density, args.epochs)]:
                    row = run(arm, density, seed, data, args.epochs)
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(arm, density, seed, row["test_error"], row["seconds"], flush=True)
    print("\n\n".join(f"{density:.0%}\n\n{table(density)}" for density in args.densities))


if __name__ == "__main__":
    main()
