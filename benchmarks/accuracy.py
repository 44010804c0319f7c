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
import platform
import subprocess
import time
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import GMP, SET, Algorithm, CosineSchedule, RigL, SparseMomentum, Sparsifier, Static

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "accuracy.jsonl"
EPOCHS, BATCH, TRAIN = 100, 100, 54_000

# name: (algorithm or None for dense, density, allocation)
ARMS: dict[str, tuple[Algorithm | None, float, str]] = {
    "dense": (None, 1.0, "erk"),
    "static": (Static(), 0.05, "erk"),
    "set": (SET(every="epoch", stop=0.75, fraction=CosineSchedule(0.3)), 0.05, "erk"),
    "rigl": (RigL(every="epoch", stop=0.75, fraction=CosineSchedule(0.3)), 0.05, "erk"),
    "sparse_momentum": (SparseMomentum(), 0.05, "uniform"),
    "gmp": (GMP(every=100, stop=0.75), 0.05, "erk"),
}


# In words, for the table; the exact object is in every line of the results.
RECIPES = {
    "static": "ERK",
    "set": "ERK, every epoch, fraction 0.3 cosine, until 75 %",
    "rigl": "ERK, every epoch, fraction 0.3 cosine, until 75 %",
    "sparse_momentum": "uniform, every epoch, fraction 0.5 cosine to 0.005",
    "gmp": "ERK, every 100 steps, from step 0 to 75 %",
}
PUBLISHED = {"dense": "1.31", "set": "1.86", "sparse_momentum": "1.53 ± 0.02"}


def load(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images as normalised rows, with labels."""
    raw = np.load(path)
    x, t = (
        torch.from_numpy(raw[f"x_{part}"]).float().div(255).sub(0.1307).div(0.3081).flatten(1)
        for part in ("train", "test")
    )
    y, u = (torch.from_numpy(raw[f"y_{part}"]).long() for part in ("train", "test"))
    return x, y, t, u


def run(arm: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int) -> dict[str, object]:
    """Train one network; the row to store."""
    torch.manual_seed(seed)
    algorithm, density, allocation = ARMS[arm]
    x, y, test_x, test_y = data
    held_in = torch.randperm(len(x))[:TRAIN]
    x, y = x[held_in], y[held_in]
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
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
        )
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(BATCH):
            loss = F.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        error = 100 - 100 * float((net(test_x).argmax(1) == test_y).float().mean())
    weights = sparsifier.masks.values() if sparsifier else [p for p in net.parameters() if p.ndim > 1]
    live = sum(int(w.count_nonzero()) for w in weights)
    return {
        "arm": arm,
        "algorithm": repr(algorithm),
        "density": density,
        "allocation": allocation,
        "seed": seed,
        "epochs": epochs,
        "test_error": round(error, 3),
        "live": live,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": COMMIT,
        "date": date.today().isoformat(),
    }


def commit() -> str:
    """The commit that was measured; a plus marks changes on top of it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "--", "../lightning_sparse") else ""
    )


COMMIT = commit()  # of the code that this process has loaded, whatever is committed while it runs


def rows() -> list[dict[str, object]]:
    """What has run."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def done(arm: str, seed: int, epochs: int) -> bool:
    """Whether this very recipe has run."""
    recipe = (arm, repr(ARMS[arm][0]), ARMS[arm][2], seed, epochs)
    return recipe in {(r["arm"], r["algorithm"], r["allocation"], r["seed"], r["epochs"]) for r in rows()}


def table() -> str:
    """What has run, in Markdown: mean test error over the seeds, plus or minus its standard error."""
    lines = [
        "| | test error % | seeds | live weights | recipe | published |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        ran = [r for r in rows() if r["arm"] == arm and r["epochs"] == EPOCHS and r["algorithm"] == repr(ARMS[arm][0])]
        errors = [float(str(r["test_error"])) for r in ran]
        if not errors:
            lines.append(f"| {arm} | not run | | | | {PUBLISHED.get(arm, '')} |")
            continue
        spread = f" ± {stdev(errors) / len(errors) ** 0.5:.2f}" if len(errors) > 1 else ""
        recipe = RECIPES.get(arm, "")
        cells = (arm, f"{mean(errors):.2f}{spread}", len(errors), f"{ran[0]['live']:,}", recipe, PUBLISHED.get(arm, ""))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "examples" / "data" / "mnist.npz")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load(args.data)
        for seed in range(args.seeds):
            for arm in args.arms:
                if not done(arm, seed, args.epochs):
                    row = run(arm, seed, data, args.epochs)
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(arm, seed, row["test_error"], row["seconds"], flush=True)
    print(table())


if __name__ == "__main__":
    main()
