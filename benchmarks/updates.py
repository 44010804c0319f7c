"""What each algorithm's update costs, and what a step costs between updates: 2.1 million weights, one CPU thread.

    python benchmarks/updates.py            # prints the table, writes results/updates.json (about 2 minutes)

Two linear layers of 1024 x 1024 at 10 % density under fused SGD with momentum; gradients are ready, so only the
optimizer step and what the engine does around it is measured. Arms take turns, in an order that changes every round;
CPU time, medians.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median

import torch
from record import versions
from torch import nn

from lightning_sparse import (
    ACDC,
    DSR,
    GMP,
    L0,
    MEST,
    SET,
    SRSTE,
    STR,
    Algorithm,
    GlobalMagnitude,
    GraNet,
    RigL,
    SparseMomentum,
    Sparsifier,
    SRigL,
    Static,
    TopKAST,
)

RESULTS = Path(__file__).parent / "results" / "updates.json"
EVERY, FAR = 4, 100_000
WHEN = {"every": EVERY, "stop": FAR}
ARMS: dict[str, Algorithm] = {
    "static": Static(),
    "set": SET(**WHEN),
    "rigl": RigL(**WHEN),
    "sparse_momentum": SparseMomentum(**WHEN),
    "dsr": DSR(**WHEN),
    "mest": MEST(**WHEN),
    "srigl": SRigL(**WHEN),
    "gmp": GMP(**WHEN),
    "global_magnitude": GlobalMagnitude(rounds=FAR // EVERY, stop=FAR),
    "granet": GraNet(end=FAR // 2, **WHEN),
    "acdc": ACDC(begin=EVERY, every=EVERY, stop=FAR, last=EVERY),
    "str": STR(**WHEN),
    "l0": L0(begin=0, **WHEN),
    "topkast": TopKAST(**WHEN),
    "srste": SRSTE(**WHEN),
}


def step_times(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step between updates and of one with an update, by arm."""
    torch.set_num_threads(1)
    arms = {}
    for name, algorithm in ARMS.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=True)
        arms[name] = (net, optimizer, Sparsifier(net, algorithm, 0.1, optimizers=[optimizer]))
    gradients = [torch.randn(1024, 1024) for _ in range(2)]
    taken: dict[str, dict[bool, list[float]]] = {name: {True: [], False: []} for name in ARMS}
    x = torch.randn(1, 1024)
    for number in range(1, rounds + 1):
        for name in random.sample(list(arms), len(arms)):
            net, optimizer, _ = arms[name]
            net(x)  # L0 draws its gates in a forward pass; the pass of one sample itself is small
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.grad = gradient.clone()
            start = time.process_time()
            optimizer.step()
            taken[name][number % EVERY == 0].append((time.process_time() - start) * 1e3)
    plain = {name: median(times[False]) for name, times in taken.items()}
    return {n: {"step_ms": plain[n], "update_ms": median(t[True]) - plain[n]} for n, t in taken.items()}


def table(stored: dict[str, object]) -> str:
    """In Markdown: milliseconds of an update for a million weights; a step between updates, to the static one."""
    arms = stored["arms"]
    assert isinstance(arms, dict)
    lines = ["| | update, ms a million weights | optimizer step between updates, to static's |", "|---|---|---|"]
    for name, row in arms.items():
        update = "" if name == "static" else f"{row['update_ms'] / 2.097:.0f}"
        lines.append(f"| {name} | {update} | {row['step_ms'] / arms['static']['step_ms']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.table:
        stored = {**versions(), "rounds": args.rounds, "arms": step_times(args.rounds)}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
