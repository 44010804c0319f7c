"""What exported models gain in speed, and how far runtimes agree with PyTorch.

    python benchmarks/export_speed.py                                  # latency (about 10 minutes)
    python benchmarks/export_speed.py --data fashion_mnist.npz         # agreement (about 3 minutes)

Latency: a ResNet-18 for CIFAR, whole and with half of its channels, random weights, one thread; arms take turns in an
order that changes every round; medians of the CPU time of the process (the machine may be shared) and of the wall
clock; ONNX Runtime as it runs a file by itself. Agreement: on Fashion-MNIST, a convolutional network at 10 % density
and an MLP at 5 %, one epoch of RigL each, calibrated on 1,024 training images, then the 10,000 test images. Every
figure is a line of results/export_speed.jsonl.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from overhead import resnet18
from record import Row, read, versions
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import RigL, Sparsifier, slim
from lightning_sparse.export import convert, session, to_onnx
from lightning_sparse.export.runtimes import Runtime
from lightning_sparse.quant.quantization import Quantization
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find

RESULTS = Path(__file__).parent / "results" / "export_speed.jsonl"
ARMS = ("eager", "compile", "onnxruntime", "onnxruntime int8", "openvino", "openvino int8")
WORDS = {"eager": "PyTorch eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RUNTIMES: tuple[tuple[str, Runtime, bool], ...] = (
    ("onnxruntime", "onnxruntime", False),
    ("exact", "onnxruntime", True),
    ("openvino", "openvino", True),
)
WIDTHS = {"resnet18": "ResNet-18", "half": "half of its channels"}
FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8")


def processor() -> Row:
    """Its name, and which instructions for integers it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = dict(part.split(":", 1) for part in reversed(lines) if ":" in part)
    fields = {key.strip(): value.strip() for key, value in told.items()}
    has = [flag for flag in FLAGS if flag in fields.get("flags", "").split()]
    return {"cpu": fields.get("model name", "unknown"), "instructions": has}


def calibrated(net: nn.Module, x: Tensor, bits: int = 8) -> Quantization:
    """Quantized by what it does on one batch."""
    kinds = (nn.Linear, nn.Conv2d)
    names = {name: bits for name, part in net.named_modules() if isinstance(part, kinds)}
    net.eval()
    quantizer = Quantizer(net, find(net, lambda: net(x), names))
    quantizer.calibrate([lambda: net(x)])
    found = quantizer.quantization
    quantizer.detach()
    return found


def arms(net: nn.Module, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """Every way to run the network."""
    net.eval()
    x = torch.randn(8, 3, 32, 32)
    to_onnx(net, folder / "float.onnx", x, "float")
    to_onnx(net, folder / "int8.onnx", x, calibrated(net, x), tolerance=0.2)  # random weights: outputs hardly differ
    found: dict[str, Callable[[Tensor], Any]] = {"eager": net, "compile": torch.compile(net)}
    for runtime in ("onnxruntime", "openvino"):
        found[runtime] = session(folder / "float.onnx", runtime, threads=1)  # type: ignore[arg-type]
        found[f"{runtime} int8"] = session(folder / "int8.onnx", runtime, threads=1, exact=False)  # type: ignore[arg-type]
    return found


@torch.no_grad()
def measure(name: str, net: nn.Module, batch: int, rounds: int) -> list[Row]:
    """The medians of all arms."""
    x = torch.randn(batch, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        ways = arms(net, Path(folder))
        size = {"int8": (Path(folder) / "int8.onnx").stat().st_size, "": (Path(folder) / "float.onnx").stat().st_size}
    cpu: dict[str, list[float]] = {arm: [] for arm in ways}
    wall: dict[str, list[float]] = {arm: [] for arm in ways}
    for turn in range(rounds + 2):  # the first two compile and warm up
        for arm in random.sample(list(ways), len(ways)):
            start, begun = time.process_time(), time.perf_counter()
            ways[arm](x)
            if turn >= 2:
                cpu[arm].append(time.process_time() - start)
                wall[arm].append(time.perf_counter() - begun)
    return [
        {
            "kind": "speed", "model": name, "arm": arm, "batch": batch, "cpu_ms": round(1e3 * median(cpu[arm]), 3),
            "wall_ms": round(1e3 * median(wall[arm]), 3), "rounds": rounds,
            "bytes": size["int8" if arm.endswith("int8") else ""], **processor(), **versions(),
        }
        for arm in ways
    ]  # fmt: skip


def latency(rounds: int) -> None:
    """Both networks at batch 1 and 32."""
    torch.manual_seed(0)
    half = resnet18()
    slim(half, torch.randn(2, 3, 32, 32), 0.5)
    for name, net in (("resnet18", resnet18()), ("half", half)):
        for batch in (1, 32):
            for row in measure(name, net, batch, rounds if batch == 1 else max(rounds // 4, 3)):
                note(row)


def mlp() -> nn.Sequential:
    """LeNet-300-100."""
    layers = [nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def trained(net: nn.Sequential, density: float, x: Tensor, y: Tensor) -> None:
    """One epoch of sparse training."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(x) // 128
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    Sparsifier(net, RigL(every=25), density, optimizers=[optimizer], total_steps=steps)
    for rows in torch.randperm(len(x))[: steps * 128].view(-1, 128):
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        decay.step()
    net.eval()


def agreement(data: Path) -> None:
    """Predictions of every runtime on the test images, against PyTorch's of the same integers."""
    from fashion import load, network

    x, y, test, labels = load(data)
    for name, net, density in (("BN-CNN, 10 %", network(), 0.1), ("MLP, 5 %", mlp(), 0.05)):
        torch.manual_seed(0)
        trained(net, density, x, y)
        floats = predicted(net, test)
        for bits in (8, 7):
            known = calibrated(net, x[:1024], bits)
            small = convert(net, test[:8], known)
            with tempfile.TemporaryDirectory() as folder:
                report = to_onnx(net, Path(folder) / "net.onnx", test[:256], known, tolerance=1.0)
                answers = {"PyTorch": predicted(small, test)}
                for label, runtime, exact in RUNTIMES:
                    run = session(report.path, runtime, threads=1, exact=exact)
                    answers[label] = predicted(lambda part, run=run: run(part)[0], test)
            for runtime, found in answers.items():
                note(
                    {
                        "kind": "agreement",
                        "model": name,
                        "bits": bits,
                        "runtime": runtime,
                        "accuracy": accuracy(found, labels),
                        "float_accuracy": accuracy(floats, labels),
                        "same": round(100 * float((found == answers["PyTorch"]).float().mean()), 2),
                        **processor(),
                        **versions(),
                    }
                )


@torch.no_grad()
def predicted(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The class of each image."""
    return torch.cat([run(part).argmax(1) for part in x.split(500)])


def accuracy(found: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return round(100 * float((found == labels).float().mean()), 2)


def note(row: Row) -> None:
    """Print and store."""
    print(row, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def table(path: Path = RESULTS) -> str:
    """Latency: milliseconds of CPU time, times PyTorch eager of the whole network, and times the runtime's float."""
    rows = {(r["model"], r["arm"], r["batch"]): r for r in read(path) if r["kind"] == "speed"}
    lines = [
        "| network | runs in | batch 1, ms | x eager | x float | batch 32, ms | x eager | x float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in WIDTHS:
        for arm in ARMS:
            if (model, arm, 1) not in rows:
                continue
            runtime, _, kind = arm.partition(" ")
            cells = [WIDTHS[model], f"{WORDS[runtime]}{', int8' if kind else ''}"]
            for batch in (1, 32):
                spent, eager, floats = (
                    _ms(rows, key, batch) for key in ((model, arm), ("resnet18", "eager"), (model, runtime))
                )
                cells += [f"{spent:.1f}", f"{eager / spent:.1f}", f"{floats / spent:.1f}" if kind else ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ms(rows: dict[Any, Row], key: tuple[str, str], batch: int) -> float:
    return float(str(rows[(*key, batch)]["cpu_ms"]))


def agreements(path: Path = RESULTS) -> str:
    """Predictions that are PyTorch's, and accuracy."""
    rows = {(r["model"], r["bits"], r["runtime"]): r for r in read(path) if r["kind"] == "agreement"}
    lines = [
        "| network | bits | runs in | same predictions as PyTorch | accuracy | in float |",
        "|---|---|---|---|---|---|",
    ]
    names = {"PyTorch": "PyTorch", "exact": "ONNX Runtime, `export.session`", **WORDS}
    lines += [
        f"| {model} | {bits} | {names[runtime]} | {r['same']:.2f} % | {r['accuracy']:.2f} | {r['float_accuracy']:.2f} |"
        for (model, bits, runtime), r in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data", type=Path, help="fashion_mnist.npz: agreement instead of latency")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        agreement(args.data) if args.data else latency(args.rounds)
    print(table(), agreements(), sep="\n\n")


if __name__ == "__main__":
    main()
