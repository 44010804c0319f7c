"""What other libraries do with the same work: probes of correctness, and the time of a step.

    python benchmarks/peers.py            # writes results/peers.json, prints the table (about a minute)
    python benchmarks/peers.py --table    # only the table of what is stored

Lightning's ModelPruning and torch.ao.pruning come with Lightning and torch: probes.py trains with each, and with
MaskUpdater, and looks from outside. Step times are taken as overhead.py takes them, on LeNet-300-100; those of
MaskUpdater on larger models are overhead.py's. rigl-torch, sparse_learning and ITOP do not run beside today's torch as
they are: their figures, and the others' on larger models, are from earlier probes ("reported" in the results file, with
the source), which this script keeps and does not repeat.
"""

import argparse
import json
import logging
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from overhead import EVERY, Arm, sgd, summary
from overhead import RESULTS as OVERHEAD
from probes import DENSITY, LIBRARIES, PROBES, SPARSITY, Found
from record import versions
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune
from watched import Library

from lightning_sparse import RigL, Sparsifier

RESULTS = Path(__file__).parent / "results" / "peers.json"
STEP, ROUNDS = "step, ", 400


def lenet() -> nn.Sequential:
    """LeNet-300-100."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def look(probe: Callable[[Library], Found], library: Library) -> dict[str, object]:
    """What a probe finds; an error is a no."""
    try:
        return probe(library)._asdict()
    except Exception as error:  # whatever a library raises is what its user would meet
        return {"ok": False, "words": f"`{type(error).__name__}`", "error": str(error)[:300]}


def prune_once(net: nn.Sequential) -> Callable[[], object]:
    """What ModelPruning does to a model; the call prunes again."""
    targets = [(module, "weight") for module in net if isinstance(module, nn.Linear)]

    def again(amount: float = 0.01) -> None:
        prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=amount)

    again(SPARSITY)
    return again


def prepare(net: nn.Sequential) -> Callable[[], object]:
    """torch.ao.pruning's setup; the call chooses anew."""
    sparsifier = WeightNormSparsifier(SPARSITY, sparse_block_shape=(1, 1))
    sparsifier.prepare(net, config=None)
    sparsifier.step()
    return sparsifier.step


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """LeNet-300-100: ratios of step times to dense, round by round; the time of an update in dense steps."""
    arms, updates = dict[str, Arm](), dict[str, Callable[[], object]]()
    for arm in ("dense", "dense again", *LIBRARIES):
        torch.manual_seed(0)
        net = lenet()
        if arm in ("ModelPruning", "torch.ao.pruning"):
            updates[arm] = (prune_once if arm == "ModelPruning" else prepare)(net)
        arms[arm] = Arm(net, sgd(net), torch.randn(100, 784))
        if arm == "MaskUpdater":
            algorithm, optimizers = RigL(every=EVERY, stop=10**6), [arms[arm].optimizer]
            arms[arm].sparsifier = Sparsifier(net, algorithm, DENSITY, optimizers=optimizers)
    for turn in range(rounds + EVERY):
        for arm in random.sample(list(arms), len(arms)):
            arms[arm].step(count=turn >= EVERY)
    result = {arm: summary(value, arms["dense"]) for arm, value in arms.items()}
    for arm, update in updates.items():
        spent = [seconds(update) for _ in range(9)]
        result[arm]["update_steps"] = median(spent) / median(arms["dense"].seconds)
    return result


def seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def read() -> dict[str, Any]:
    """What is stored, and what overhead.py has stored of our steps on larger models."""
    return {**json.loads(RESULTS.read_text()), "overhead": json.loads(OVERHEAD.read_text())["models"]}


def timing(row: dict[str, float]) -> str:
    """A cell."""
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}); update {row['update_steps']:.2f}"


def answer(found: dict[str, Any]) -> str:
    """A cell."""
    words = str(found["words"])
    if words.isdigit():
        return words
    return ("yes" if found["ok"] else "**no**") + (f": {words}" if words else "")


def table(stored: dict[str, Any]) -> str:
    """What :func:`read` returns, in Markdown: a column for each library, a row for each probe and each model."""
    probes, quoted = stored["probes"], stored["reported"]["cells"]
    names = [*probes, *stored["reported"]["columns"]]
    rows = {row: {name: answer(probes[name][row]) for name in probes} for row in PROBES}
    rows[STEP + "LeNet-300-100, SGD"] = {name: timing(stored["steps"][name]) for name in probes}
    rows |= {STEP + model: {"MaskUpdater": timing(arms["rigl"])} for model, arms in stored["overhead"].items()}
    lines = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for row, own in rows.items():
        cells = {**quoted.get(row, {}), **own}
        lines.append("| " + " | ".join([row, *(cells.get(name, "not measured") for name in names)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        found = {}
        for name, library in LIBRARIES.items():
            found[name] = {row: look(probe, library) for row, probe in PROBES.items()}
        result = {
            **versions(),
            "machine": f"{platform.machine()}, one thread, shared",
            "lightning": lightning.__version__,
            "probes": found,
            "steps": measure(ROUNDS),
            "reported": json.loads(RESULTS.read_text())["reported"],
        }
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(table(read()))


if __name__ == "__main__":
    main()
