"""What a run holds, and what its steps cost, from the beginning to the end of 20,000 steps that all move the masks.

    python benchmarks/soak.py                # prints the table, writes results/soak.json (about 8 minutes)

RigL moves its masks after every step on a model of 144 weights, where a step is almost all bookkeeping: in a loop of
its own, with a dense model that takes its turn beside it, and in a Trainer, where the dense model has a run of its own.
Two with latent weights run a quarter as long. Live weights are counted after every step.

Time is CPU time of the thread (the machine may be shared): medians over a twentieth of the run after the first tenth,
and over the last twentieth. What is held is read forty times; growth a step is the median over pairs of readings a
quarter of the run apart, so that one jump changes nothing. Then tracemalloc follows the lines of the package in 2,000
steps more, from the middle to the end. The last rows are controls: an algorithm that keeps something of every step,
which must be found.
"""

import argparse
import json
import math
import multiprocessing
import platform
import time
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import moving
import torch
from held import Gauge, Lines, leaks
from lightning.pytorch import Callback, LightningModule, Trainer
from moving import ALGORITHMS, CONTROLS, Loop, network, right, sgd
from record import versions
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_sparse.watch
from lightning_sparse import DensityLogger, MaskUpdater

RESULTS = Path(__file__).parent / "results" / "soak.json"
TRAINERS = ("rigl, Trainer", "dense, Trainer")
PARTS = {  # of the steps: all for RigL, which part for the others
    "rigl": 1,
    **dict(zip(TRAINERS, (1, 4), strict=True)),
    **dict.fromkeys(("str", "l0"), 4),  # the others move masks as RigL does, and are looked at in tests
    **dict.fromkeys(CONTROLS, 10),
}


def costs(seconds: Sequence[float], suffix: str = "") -> dict[str, float]:
    """Medians of the beginning and of the end, in milliseconds, and their ratio."""
    part = len(seconds) // 20
    first, last = median(seconds[2 * part : 3 * part]), median(seconds[-part:])
    return {f"first_ms{suffix}": 1e3 * first, f"last_ms{suffix}": 1e3 * last, f"ratio{suffix}": last / first}


def in_a_loop(name: str, steps: int) -> dict[str, float]:
    """A run by hand, with a dense one beside it."""
    loops, seconds = (Loop(name, steps), Loop()), [array("d", [0.0]) * steps for _ in range(2)]
    gauge, wrong = Gauge(steps), 0
    for step in range(1, steps + 1):
        for loop, spent in zip(loops, seconds, strict=True):
            start = time.thread_time()
            loop.step(step)
            spent[step - 1] = time.thread_time() - start
        wrong += not loops[0].right(step)
        gauge.look(step)
    assert loops[0].sparsifier.updates == steps, "masks did not move after every step"
    return {**costs(seconds[0]), **costs(seconds[1], "_dense"), "wrong": wrong, **gauge.growth()}


def lines_of_a_loop(name: str, steps: int) -> float:
    """Bytes more a step at the worst line of the package, from the middle to the end."""
    loop, lines, half = Loop(name, steps), Lines(moving.__file__), steps // 2
    for step in range(1, 2 * half + 1):
        loop.step(step)
        if step == half:
            lines.mark()
    return lines.grown(half)


class Module(LightningModule):
    """The same model for a Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The same loss."""
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same optimizer."""
        return sgd(self.net)


class Probe(Callback):
    """Looks after every step."""

    def __init__(self, updater: MaskUpdater | None, steps: int, lines: bool) -> None:
        self.updater, self.wrong, self.steps = updater, 0, steps
        self.seconds, self.last = array("d", [0.0]) * steps, math.nan
        self.gauge, self.lines = (None, Lines(moving.__file__)) if lines else (Gauge(steps), None)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """What passed since the last look is the step, with all that a Trainer does around it."""
        step, now = trainer.global_step, time.thread_time()
        self.seconds[step - 1] = now - self.last
        if self.updater is not None:
            counts = [int(mask.count_nonzero()) for mask in self.updater.masks.values()]
            self.wrong += not right("rigl", step, self.steps, counts)
        if self.gauge is not None:
            self.gauge.look(step)
        if self.lines is not None and step == self.steps // 2:
            self.lines.mark()
        self.last = time.thread_time()


def in_a_trainer(name: str, steps: int, lines: bool = False) -> dict[str, float]:
    """A fit; ``lines`` follows lines instead of counts."""
    lightning_sparse.watch._ROWS = 16  # of densities over time: at 1,024, which it halves, objects come and go
    updater = None if name.startswith("dense") else MaskUpdater(ALGORITHMS["rigl"](steps), 0.25, allocation="uniform")
    probe = Probe(updater, steps, lines)
    callbacks = [probe] if updater is None else [updater, DensityLogger(50), probe]
    data = DataLoader(TensorDataset(torch.randn(128, 8), torch.randn(128, 4)), 4)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    fit = Trainer(accelerator="cpu", devices=1, max_steps=steps, callbacks=callbacks, **quiet)
    fit.fit(Module(), data)
    assert updater is None or updater.sparsifier is None or updater.sparsifier.updates == steps
    if probe.lines is not None:
        return {"line_bytes": probe.lines.grown(steps - steps // 2)}
    assert probe.gauge is not None
    return {**costs(probe.seconds), "wrong": probe.wrong, **probe.gauge.growth()}


def measure(asked: tuple[str, int]) -> dict[str, float]:
    """One arm: its name, and how many steps."""
    name, steps = asked
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if name in TRAINERS:
        return {"steps": steps, **in_a_trainer(name, steps), **in_a_trainer(name, min(steps, 2000), lines=True)}
    return {"steps": steps, **in_a_loop(name, steps), "line_bytes": lines_of_a_loop(name, min(steps, 2000))}


def table(result: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = [
        "| | steps | first, ms | last, ms | ratio | dense beside it | wrong counts | objects | tensors | "
        "blocks | bytes | bytes, worst line |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["arms"].items():
        cells = [name, f"{row['steps']:,}", f"{row['first_ms']:.2f}", f"{row['last_ms']:.2f}", f"{row['ratio']:.2f}"]
        cells += [f"{row['ratio_dense']:.2f}" if "ratio_dense" in row else "", f"{row['wrong']:.0f}"]
        cells += [f"{row[key]:.3f}" for key in ("objects", "tensors", "blocks")]
        cells += [f"{row[key]:.1f}" for key in ("bytes", "line_bytes")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("-0.0 ", "0.0 ").replace("-0.000", "0.000")


def run(asked: list[tuple[str, int]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Arms in turn, each in a process of its own: no heap has holes that another arm has left."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        yield from zip((name for name, _ in asked), pool.imap(measure, asked), strict=True)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--arms", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"arms": {}}
    result |= {**versions(), "lightning": lightning.__version__, "machine": f"{platform.machine()}, one thread, shared"}
    for name, row in run([(name, args.steps // PARTS[name]) for name in args.arms]):
        print(name, "grows in", ", ".join(leaks(row)) or "nothing", flush=True)
        result["arms"] = {
            arm: {**result["arms"], name: row}[arm] for arm in PARTS if arm in result["arms"] or arm == name
        }
        if not args.dry:
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
