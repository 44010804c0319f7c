"""How small a compressed checkpoint is, how near to the entropy, and how fast it loads.

    python benchmarks/packed.py            # prints the tables, writes results/packed.jsonl (about 3 minutes)
    python benchmarks/packed.py --table    # only the tables of what has run

Gaussian weights of about 10 million, each layer pruned by magnitude; and LeNet-300-100 trained on MNIST at 5 %,
batch 100, 10 epochs. Biases and what BatchNorm holds are random numbers, and are stored too. Speeds are CPU time of one
thread in gigabytes of the dense tensors, medians of 15 rounds and the best of them, as the machine is shared; "first"
is the first call of a process of its own, when all memory is new.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from accuracy import BATCH, load
from overhead import resnet18
from record import Row, read, versions
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import GMP, Algorithm, RigL, Sparsifier
from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.quant.grid import Codes, output_axis, quantize

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "packed.jsonl"
EPOCHS, ROUNDS = 10, 15
MODELS: dict[str, Callable[[], nn.Module]] = {
    "2 linear layers of 2240": lambda: nn.Sequential(*(nn.Linear(2240, 2240) for _ in range(2))),
    "10 linear layers of 1000": lambda: nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(10))),
    "ResNet-18": resnet18,
}
TRAINED: dict[str, Algorithm] = {
    "LeNet-300-100, rigl": RigL(every="epoch", stop=0.75),
    "LeNet-300-100, gmp": GMP(every=100, stop=0.75),
}
CASES = ((0.1, 8), (0.1, 32), (0.05, 8), (0.05, 4), (0.05, 32))


@torch.no_grad()
def gaussian(model: nn.Module, density: float) -> nn.Module:
    """The model with random numbers in all that it holds; of each weight the largest are left."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
        if tensor.ndim > 1:
            least = tensor.abs().flatten().kthvalue(round((1 - density) * tensor.numel())).values
            tensor.masked_fill_(tensor.abs() <= least, 0.0)
    return model


def lenet() -> nn.Module:
    """784 to 300 to 100 to 10."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def trained(algorithm: Algorithm, data: tuple[Tensor, ...]) -> nn.Module:
    """LeNet at 5 % density after 10 epochs."""
    torch.manual_seed(0)
    x, y, *_ = data
    net, total = lenet(), EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    engine = {"total_steps": total, "epoch_steps": total // EPOCHS}
    Sparsifier(net, algorithm, 0.05, optimizers=[optimizer], **engine)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            cosine.step()
    return net


def codes(model: nn.Module, bits: int) -> dict[str, Codes] | None:
    """All weights on a grid of so many bits; None for floats."""
    if bits == 32:
        return None
    layers = {name: module for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    weights = {f"{name}.weight": module for name, module in layers.items() if module.weight.ndim > 1}
    return {name: quantize(module.weight, bits, output_axis(module)) for name, module in weights.items()}


def seconds(call: Callable[[], object]) -> float:
    """CPU time."""
    start = time.process_time()
    held = call()
    taken = time.process_time() - start
    del held
    return taken


def speeds(file: Path, model: nn.Module) -> dict[str, float]:
    """Gigabytes of dense tensors a second: into a dict, in a new process and later, and into the model."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    arms: dict[str, Callable[[], object]] = {
        "dict": lambda: load_packed(file),
        "module": lambda: load_packed(file, model),
    }
    rounds = [{name: seconds(arm) for name, arm in arms.items()} for _ in range(ROUNDS)]
    taken = {name: median(one[name] for one in rounds) for name in arms}
    taken["best"] = min(one["dict"] for one in rounds)
    alone = [sys.executable, __file__, "--first", str(file)]
    taken["first"] = float(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
    return {f"{name}_gbs": round(size / 1e9 / one, 2) for name, one in taken.items()}


def correct(model: nn.Module, data: tuple[Tensor, ...]) -> float:
    """Test accuracy, %."""
    *_, x, y = data
    with torch.no_grad():
        return round(100 * float((model(x).argmax(1) == y).float().mean()), 2)


def measure(name: str, model: nn.Module, density: float, bits: int, folder: str, more: Mapping[str, object]) -> Row:
    """Save, load, and check that what was loaded is what was saved."""
    file, integers = Path(folder) / "net.safetensors", codes(model, bits)
    saving = seconds(lambda: save_packed(model, file, integers))
    report = save_packed(model, file, integers)
    found = load_packed(file)
    expected = model.state_dict() | {key: one.weight() for key, one in (integers or {}).items()}
    assert all(found[key].equal(tensor) for key, tensor in expected.items())
    row: Row = {"model": name, "density": density, "bits": bits, "bytes": report.bytes, "dense": report.dense_bytes}
    row |= {"bound": round(report.bound_bytes), "header": report.bytes - sum(one.bytes for one in report.tensors)}
    row |= {"save_gbs": round(report.dense_bytes / 1e9 / saving, 3), **speeds(file, copy.deepcopy(model))}
    return {**row, **more, **versions()}


def keep(row: Row) -> None:
    """A line of the results."""
    print(row, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run(data: tuple[Tensor, ...]) -> None:
    """All of it."""
    RESULTS.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            for density, bits in CASES:
                keep(measure(name, gaussian(make(), density), density, bits, folder, {}))
        for name, algorithm in TRAINED.items():
            net = trained(algorithm, data)
            for bits in (8, 4, 32):
                row = measure(name, net, 0.05, bits, folder, {"accuracy": correct(net, data)})
                loaded = load_packed(Path(folder) / "net.safetensors", lenet())
                keep({**row, "accuracy_loaded": correct(loaded, data)})


def _case(row: Row) -> list[str]:
    bits = int(str(row["bits"]))
    live = f"{float(str(row['density'])):.0%}".replace("%", " %")
    return [str(row["model"]), live, "float32" if bits == 32 else f"int{bits}"]


def _markdown(head: str, rows: list[list[str]]) -> str:
    names = head.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table() -> str:
    """In Markdown: sizes."""
    rows = []
    for row in read(RESULTS):
        dense = float(str(row["dense"]))
        ratios = [f"{dense / float(str(row[key])):.1f}" for key in ("bytes", "bound")]
        rows.append([*_case(row), f"{dense:,.0f}", f"{row['bytes']:,}", *ratios])
    return _markdown("model, live, values, dense bytes, file bytes, times smaller, entropy alone", rows)


def speed_table() -> str:
    """In Markdown: gigabytes of dense tensors a second, of the large models."""
    keys = ("save_gbs", "first_gbs", "dict_gbs", "best_gbs", "module_gbs")
    found = [row for row in read(RESULTS) if row["model"] in MODELS]
    rows = [[*_case(row), *(f"{float(str(row[key])):.2f}" for key in keys)] for row in found]
    return _markdown("model, live, values, saved, loaded first, loaded, at best, into a module", rows)


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "examples" / "data" / "mnist.npz")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--first", type=Path, help="load this file once, and print the seconds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.first:
        print(seconds(lambda: load_packed(args.first)))
        return
    if not args.table:
        run(load(args.data))
    print(table(), speed_table(), sep="\n\n")


if __name__ == "__main__":
    main()
