"""A small convolutional network with BatchNorm on Fashion-MNIST at 5 % density: 3 epochs, every algorithm.

    python benchmarks/fashion.py --data fashion_mnist.npz    # runs what is missing, prints the table (100 s a run)
    python benchmarks/fashion.py --table                     # only the table of what has run

The data is Zalando's (https://github.com/zalandoresearch/fashion-mnist) as one npz: x_train, y_train, x_test, y_test.
Recipe: batch 128, SGD with Nesterov momentum 0.9, learning rate 0.1 on a cosine to 0, L2 5e-4. Every finished run is
one line of results/fashion.jsonl. No figure is published for this network: the dense run is what to compare with.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from accuracy import Arm
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
)  # fmt: skip

RESULTS = Path(__file__).parent / "results" / "fashion.jsonl"
EPOCHS, BATCH, TRAIN, DENSITY = 3, 128, 60_000, 0.05
WHEN = {"every": 25}
ARMS = {
    "dense": Arm(None),
    "static": Arm(Static(), "ERK"),
    "snip": Arm(SNIP(), "global, one batch"),
    "grasp": Arm(GraSP(), "global, 25 samples a class"),
    "synflow": Arm(SynFlow(), "global, 100 iterations"),
    "set": Arm(SET(**WHEN), "ERK, every 25 steps"),
    "set (original)": Arm(SET(variant="original", every=25), "ERK, every 25 steps, to the end"),
    "set (itop)": Arm(SET(variant="itop", every=25), "ERK, every 25 steps, fraction 0.5, to the end"),
    "rigl": Arm(RigL(**WHEN), "ERK, every 25 steps"),
    "rigl (itop)": Arm(RigL(variant="itop", every=50), "ERK, every 50 steps, fraction 0.5, to the end"),
    "sparse_momentum": Arm(SparseMomentum(every=100), "ERK, every 100 steps"),
    "dsr": Arm(DSR(**WHEN), "uniform, every 25 steps"),
    "mest": Arm(MEST(**WHEN), "ERK, every 25 steps, EM"),
    "mest (soft)": Arm(MEST(variant="em_s", **WHEN), "ERK, every 25 steps, EM&S"),
    "srigl": Arm(SRigL(**WHEN), "ERK, every 25 steps"),
    "gmp": Arm(GMP(**WHEN), "ERK, every 25 steps until 75 %"),
    "global_magnitude": Arm(GlobalMagnitude(), "prune half way"),
    "lottery ticket": Arm(GlobalMagnitude(rounds=2, rewind="init"), "2 rounds of an epoch, rewound, then the third"),
    "acdc": Arm(ACDC(), "global, phases of 5 % of the run"),
    "granet": Arm(GraNet(**WHEN), "from 0.5, every 25 steps"),
    "str": Arm(STR(**WHEN), "steered along a cubic until 75 %"),
    "l0": Arm(L0(lr=1e-2, **WHEN), "a gate a weight, steered from 25 to 75 %"),
    "topkast": Arm(TopKAST(**WHEN), "ERK, every 25 steps"),
    "srste": Arm(SRSTE(), "ERK, unstructured, every step"),
}


def load(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images (n, 1, 28, 28), normalised, with labels."""
    raw = np.load(path)
    x, t = (torch.from_numpy(raw[f"x_{part}"]).float().div(255).sub(0.286).div(0.353)[:, None] for part in PARTS)
    y, u = (torch.from_numpy(raw[f"y_{part}"]).long() for part in PARTS)
    return x, y, t, u


PARTS = ("train", "test")


def network() -> nn.Sequential:
    """Three convolutions with BatchNorm, two linear layers: 60,688 weights."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    return nn.Sequential(
        *block(1, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def run(arm: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> Row:
    """Train one network; the row to store."""
    torch.manual_seed(seed)
    x, y, test_x, test_y = data
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    epoch = len(x) // BATCH
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * epoch)
    start = time.process_time()
    sparsifier = None
    if (algorithm := ARMS[arm].algorithm) is not None:
        sparsifier = Sparsifier(
            net, algorithm, DENSITY, optimizers=[optimizer], seed=seed, total_steps=EPOCHS * epoch, epoch_steps=epoch,
            batches=[(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, 20 * BATCH, BATCH)],
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), example_inputs=x[:1],
        )  # fmt: skip
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: epoch * BATCH].view(-1, BATCH):
            loss = F.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    seconds = time.process_time() - start
    net.eval()
    with torch.no_grad():
        right = sum(
            int((net(a).argmax(1) == b).sum()) for a, b in zip(test_x.split(500), test_y.split(500), strict=True)
        )
    weights = sparsifier.masks.values() if sparsifier else [p for p in net.parameters() if p.ndim > 1]
    return {
        "arm": arm, "algorithm": repr(algorithm), "recipe": ARMS[arm].recipe, "seed": seed, "epochs": EPOCHS,
        "test_error": round(100 - 100 * right / len(test_y), 3), "live": sum(int(w.count_nonzero()) for w in weights),
        "seconds": round(seconds, 1), **versions(),
    }  # fmt: skip


def ran(arm: str) -> list[Row]:
    """The rows of an arm's recipe, one a seed."""
    return newest([r for r in read(RESULTS) if (r["arm"], r["recipe"]) == (arm, ARMS[arm].recipe)])


def table() -> str:
    """What has run, in Markdown: mean test error over the seeds, plus or minus its standard error."""
    lines = ["| | test error % | seeds | live weights | CPU seconds | recipe |", "|---|---|---|---|---|---|"]
    for arm in ARMS:
        found = ran(arm)
        if not found:
            lines.append(f"| {arm} | not run | | | | {ARMS[arm].recipe} |")
            continue
        seconds = f"{mean(float(str(r['seconds'])) for r in found):.0f}"
        cells = (arm, error(found), len(found), f"{found[0]['live']:,}", seconds, ARMS[arm].recipe)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="fashion_mnist.npz")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.table and args.data is None:
        parser.error("give --data fashion_mnist.npz, or --table")
    torch.set_num_threads(1)
    data = None if args.table else load(args.data)
    for seed, arm in [(seed, arm) for seed in args.seeds for arm in args.arms]:
        if data is not None and seed not in [r["seed"] for r in ran(arm)]:
            row = run(arm, seed, data)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(arm, seed, row["test_error"], row["seconds"], flush=True)
    print(table())


if __name__ == "__main__":
    main()
