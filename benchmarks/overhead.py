"""What being sparse costs a training step that still computes densely, and what moving the masks costs.

    python benchmarks/overhead.py            # prints the table, writes results/overhead.json (about 4 minutes)

Arms take turns in one process, on one thread, in an order that changes every round; figures are CPU time of the process
(the machine may be shared), each round's ratio to the dense step of that round, as median and quartiles. "dense again"
is a second, identical dense arm: its spread is the noise of the measurement. An update is the RigL step that moves the
masks less the median step that does not.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import RigL, SparseMomentum, Sparsifier

RESULTS = Path(__file__).parent / "results" / "overhead.json"
EVERY = 4  # steps between updates: each fourth round measures one


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 for CIFAR, 11.2 million weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def transformer() -> nn.Sequential:
    """Six encoder layers, 4.7 million weights."""
    layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(256, 96))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """SGD as for CIFAR."""
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    """AdamW as for language models."""
    return torch.optim.AdamW(net.parameters(), lr=3e-4)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], torch.optim.Optimizer], tuple[int, ...]]] = {
    "resnet18, SGD": (resnet18, sgd, (32, 3, 32, 32)),
    "transformer, AdamW": (transformer, adamw, (8, 128, 256)),
}


@dataclass
class Arm:
    """One model that takes its turn."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Tensor
    seconds: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    sparsifier: Sparsifier | None = None

    def step(self, count: bool) -> None:
        """One training step, timed."""
        start = time.process_time()
        loss = self.net(self.batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        spent = time.process_time() - start
        if not count:
            return
        moved = self.sparsifier is not None and self.sparsifier.steps % EVERY == 0
        (self.updates if moved else self.seconds).append(spent)
        if moved:
            self.seconds.append(float("nan"))


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """All arms of one model."""
    make, optimize, shape = MODELS[name]
    batch, arms = torch.randn(shape), {}
    for arm in ("dense", "dense again", "rigl", "sparse_momentum"):
        torch.manual_seed(0)
        net = make()
        arms[arm] = Arm(net, optimize(net), batch)
    for arm, algorithm in (("rigl", RigL(every=EVERY, stop=10**6)), ("sparse_momentum", SparseMomentum(EVERY, 10**6))):
        arms[arm].sparsifier = Sparsifier(arms[arm].net, algorithm, 0.1, optimizers=[arms[arm].optimizer])
    for turn in range(rounds + EVERY):  # the first few make optimizer state and warm caches
        for arm in random.sample(list(arms), len(arms)):
            arms[arm].step(count=turn >= EVERY)
    return {arm: summary(value, arms["dense"]) for arm, value in arms.items()}


def summary(arm: Arm, dense: Arm) -> dict[str, float]:
    """Medians, and ratios round by round."""
    ratios = [a / d for a, d in zip(arm.seconds, dense.seconds, strict=True) if a == a]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
    plain = [s for s in arm.seconds if s == s]
    row = {"step_ms": 1e3 * median(plain), "ratio": middle, "low": low, "high": high}
    if arm.updates:
        extra = median(arm.updates) - median(plain)
        row |= {"update_ms": 1e3 * extra, "update_steps": extra / median(dense.seconds)}
    return row


def table(result: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = [
        "| model | arm | step, ms | ratio to dense | quartiles | update, ms | update, in dense steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["models"].items():
        for arm, row in rows.items():
            cells = [
                name,
                arm,
                f"{row['step_ms']:.0f}",
                f"{row['ratio']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
            ]
            cells += [f"{row['update_ms']:.0f}", f"{row['update_steps']:.2f}"] if "update_ms" in row else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.__config__.parallel_info().splitlines()[-1].strip()}"
    )
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": machine,
        "date": date.today().isoformat(),
        "models": {},
    }
    for name in args.models:
        result["models"][name] = measure(name, args.rounds)
    print(table(result))
    if not args.dry:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
