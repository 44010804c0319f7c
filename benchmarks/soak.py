"""What a step costs at the end of a long run, beside one at its beginning; and what has piled up by then.

    python benchmarks/soak.py                # prints the table, writes results/soak.json (about 3 minutes)

Every algorithm moves its masks after every one of 20,000 steps on a model of 144 weights, where a step is almost all
bookkeeping. Figures are CPU time of the process (the machine may be shared): medians over the first and over the last
thousand steps after a warm-up, and their ratio. Objects and memory are those held at the end less those held after the
warm-up.
"""

import argparse
import gc
import json
import platform
import sys
import time
from array import array
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from lightning_sparse import DSR, GMP, L0, STR, Algorithm, RigL, SparseMomentum, Sparsifier

RESULTS = Path(__file__).parent / "results" / "soak.json"
WARM, PART = 500, 1000
ALGORITHMS: dict[str, Callable[[int], Algorithm]] = {
    "rigl": lambda steps: RigL(every=1, stop=steps),
    "sparse_momentum": lambda steps: SparseMomentum(every=1, stop=steps),
    "gmp": lambda steps: GMP(every=1, stop=steps),
    "dsr": lambda steps: DSR(every=1, stop=steps, threshold=0.02),
    "str": lambda steps: STR(every=1, stop=steps),
    "l0": lambda steps: L0(every=1, begin=0, stop=steps),
}


def held() -> dict[str, int]:
    """Objects, blocks of Python's allocator, and bytes of the process (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return {"objects": len(gc.get_objects()), "blocks": sys.getallocatedblocks(), "bytes": 4096 * pages}


def soak(name: str, steps: int) -> dict[str, float]:
    """One run."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    sparsifier = Sparsifier(model, ALGORITHMS[name](steps), 0.25, optimizers=[optimizer], total_steps=steps)
    x, y = torch.randn(32, 4, 8), torch.randn(32, 4, 4)
    spent = array("d", [0.0]) * steps  # holds no objects
    before = held()
    for step in range(steps):
        if step == WARM:
            before = held()
        start = time.process_time()
        optimizer.zero_grad()
        (model(x[step % 32]) - y[step % 32]).square().mean().backward()
        optimizer.step()
        spent[step] = time.process_time() - start
    after = held()
    assert sparsifier.updates == steps, "masks did not move after every step"
    first, last = median(spent[WARM : WARM + PART]), median(spent[-PART:])
    grown = {f"{key}_grown": float(after[key] - before[key]) for key in after}
    return {"first_ms": 1e3 * first, "last_ms": 1e3 * last, "ratio": last / first, **grown}


def table(rows: dict[str, dict[str, float]]) -> str:
    """What was measured, in Markdown."""
    lines = [
        "| algorithm | first, ms | last, ms | ratio | objects more | memory more, KiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        times = f"{row['first_ms']:.2f} | {row['last_ms']:.2f} | {row['ratio']:.3f}"
        lines.append(f"| {name} | {times} | {row['objects_grown']:.0f} | {row['bytes_grown'] / 1024:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: soak(name, args.steps) for name in args.algorithms}
    print(table(rows))
    if not args.dry:
        machine = platform.processor() or platform.machine()
        about: dict[str, Any] = {"torch": torch.__version__, "machine": machine, "date": date.today().isoformat()}
        RESULTS.write_text(json.dumps({**about, "steps": args.steps, "algorithms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
