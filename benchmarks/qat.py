"""What quantized training adds to a sparse training step that computes densely.

    python benchmarks/qat.py            # prints the table, adds lines to results/qat.jsonl (about 2 minutes)

Arms take turns in one process, on one thread; figures are CPU time of the process, each round's ratio to the sparse
step of that round: median and quartiles. "again" is a second sparse arm: its spread is the noise of the measurement.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from overhead import resnet18, sgd
from record import versions
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import Sparsifier, Static
from lightning_sparse.quant.layers import candidates
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find

RESULTS = Path(__file__).parent / "results" / "qat.jsonl"
BITS = 4
ARMS: dict[str, int | str | None] = {"sparse": "float", "again": "float", "w4": None, "w4a8": 8}


def mlp() -> nn.Sequential:
    """784-1024-1024-10, 1.9 million weights."""
    sizes = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return nn.Sequential(*sizes)


MODELS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "resnet18, batch 16": (resnet18, (16, 3, 32, 32)),
    "mlp, batch 128": (mlp, (128, 784)),
}


class Arm:
    """One model that takes its turn, 90 % sparse; ``act_bits`` "float" is not quantized at all."""

    def __init__(self, make: Callable[[], nn.Sequential], shape: tuple[int, ...], act_bits: int | str | None) -> None:
        torch.manual_seed(0)
        self.net, self.batch = make(), torch.randn(shape)
        self.labels = torch.randint(0, 10, (shape[0],))
        self.optimizer = sgd(self.net)
        Sparsifier(self.net, Static(), 0.1, optimizers=[self.optimizer])
        self.quantizer: Quantizer | None = None
        if not isinstance(act_bits, str):
            layers = find(self.net, self.forward, dict.fromkeys(candidates(self.net).modules, BITS))
            self.quantizer = Quantizer(self.net, layers, optimizers=[self.optimizer], act_bits=act_bits)
            self.quantizer.calibrate([self.forward])
        self.seconds: list[float] = []

    def forward(self) -> Tensor:
        """What the model answers."""
        out: Tensor = self.net(self.batch)
        return out

    def step(self) -> None:
        """One step, timed."""
        start = time.process_time()
        self.optimizer.zero_grad()
        F.cross_entropy(self.forward(), self.labels).backward()
        self.optimizer.step()
        if self.quantizer is not None:
            self.quantizer.step()
        self.seconds.append(time.process_time() - start)


def measure(name: str, rounds: int) -> list[dict[str, object]]:
    """A row for each arm of one model."""
    make, shape = MODELS[name]
    arms = {arm: Arm(make, shape, act_bits) for arm, act_bits in ARMS.items()}
    order = list(arms.values())
    for _ in range(rounds + 2):
        random.shuffle(order)
        for arm in order:
            arm.step()
    rows: list[dict[str, object]] = []
    base = arms["sparse"].seconds[2:]
    for label, arm in arms.items():
        ratios = [mine / other for mine, other in zip(arm.seconds[2:], base, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        figures = {"ms": round(1e3 * median(arm.seconds[2:]), 2), "ratio": round(median(ratios), 3)}
        quartiles = [round(low, 3), round(high, 3)]
        rows.append({"model": name, "arm": label, **figures, "quartiles": quartiles, "rounds": rounds, **versions()})
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    random.seed(0)
    for name in MODELS:
        for row in measure(name, rounds):
            print(f"{row['model']:20} {row['arm']:8} {row['ms']:>8} ms  x {row['ratio']} {row['quartiles']}")
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
