"""How fast layers are that compute only non-zeros, beside dense layers and other sparse ones.

    python benchmarks/compute.py [train] [inference] [conv] [memory] [roofline]

Peers: pip install sparselab sparseprop scipy onnx onnxruntime (each is left out where it is not there).
All in one process on one thread, in turns; the median of CPU times. Lines go to results/compute.jsonl;
compute_tables.py makes the tables and the plot of docs/kernels.md of them.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from layers import chain, linear_kinds, masked_mlp, onnx_conv, onnx_linear, thin
from record import versions
from torch import Tensor, nn
from wide import sparse, stubbed, wide_resnet

from lightning_sparse.compute import SparseConv2d, SparseLinear
from lightning_sparse.compute.native import native, using

RESULTS = Path(__file__).parent / "results" / "compute.jsonl"
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # whether this processor multiplies it
Step = Callable[[], object]


def timed(steps: Mapping[str, Step], rounds: int = 9) -> dict[str, float]:
    """Median CPU milliseconds of each, taken in turns, so that a busy machine hits all of them.

    What takes longer than 0.3 seconds has a turn in each fourth round only.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    repeats, every = {}, {}
    for name, step in steps.items():
        step()
        start = time.process_time()
        step()
        spent = time.process_time() - start
        repeats[name], every[name] = max(1, int(2e-3 / max(spent, 1e-6))), 4 if spent > 0.3 and rounds > 4 else 1
    for turn in range(rounds):
        for name, step in steps.items():
            if turn % every[name]:
                continue
            start = time.process_time()
            for _ in range(repeats[name]):
                step()
            taken[name].append((time.process_time() - start) / repeats[name] * 1e3)
    return {name: median(times) for name, times in taken.items()}


def write(row: Mapping[str, object]) -> None:
    """One line into the file."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def cpu() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def keep(bench: str, setting: Mapping[str, object], times: Mapping[str, float], reference: str) -> None:
    """One line a method into the file, and on the screen: how many times as fast as the reference."""
    isa = getattr(native(), "isa", "torch")
    for name, ms in times.items():
        write({"bench": bench, **setting, "method": name, "ms": round(ms, 4), "isa": isa, "cpu": cpu(), **versions()})
    shown = "  ".join(f"{name} {ms:.2f}ms {times[reference] / ms:.2f}x" for name, ms in times.items())
    print(bench, *setting.values(), "|", shown, flush=True)


def trainer(model: nn.Module, x: Tensor, target: Tensor, bf16: bool = False) -> Step:
    """A whole training step: forward, backward, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        F.mse_loss(y.float(), target).backward()
        optimizer.step()

    return step


def under_torch(step: Step) -> Step:
    """The same without our kernels."""

    def run() -> None:
        with using("torch"):
            step()

    return run


def train() -> None:
    """Training steps of two MLPs and of the MLP block of a transformer (8 sequences of 128)."""
    for sizes, batch, between in (
        ((1024, 4096, 1024), 128, nn.ReLU),
        ((784, 300, 100, 10), 128, nn.ReLU),
        ((256, 1024, 256), 1024, nn.GELU),
    ):
        for density in (0.5, *DENSITIES) if sizes[0] == 1024 else DENSITIES:  # 50 %: past the crossing point
            layers = masked_mlp(sizes, density)
            x, target = torch.randn(batch, sizes[0]), torch.randn(batch, sizes[-1])
            steps = {}
            for name, kind in linear_kinds().items():
                if name == "dense bf16" and not BFLOAT16 and density != DENSITIES[0]:
                    continue  # thirty times as slow: once is enough
                model = chain([kind(layer) for layer in layers], between)
                step = trainer(model, x, target, name.endswith("bf16"))
                try:
                    step()
                except IndexError as error:  # sparselab 0.2.2 keeps transposes by id()
                    print(f"{name} fails: {error}")
                    continue
                steps[name] = under_torch(step) if name == "torch operators" else step
            setting = {"model": "-".join(map(str, sizes)), "batch": batch, "density": density}
            keep("train", setting, timed(steps, 5), "dense oneDNN")


def inference() -> None:
    """A linear layer 1024 to 4096 and 3x3 convolutions, against torch and ONNX Runtime."""
    for batch in (1, 64):
        for density in DENSITIES:
            (layer,) = masked_mlp((1024, 4096), density)
            ours, x = SparseLinear.from_dense(layer), torch.randn(batch, 1024)
            others = {"ONNX Runtime": (onnx_linear, False), "ONNX Runtime int8": (onnx_linear, True)}
            _inferred("1024-4096", layer, ours, x, density, others)
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        for batch in (1, 8, 32):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            thin(conv, 0.05)
            x = torch.randn(batch, channels, size, size)
            others = {"ONNX Runtime": (onnx_conv,)}
            _inferred(f"3x3 {channels} on {size}x{size}", conv, SparseConv2d.from_dense(conv), x, 0.05, others)


def _inferred(
    title: str, dense: nn.Module, ours: nn.Module, x: Tensor, density: float, others: Mapping[str, tuple[Any, ...]]
) -> None:
    steps: dict[str, Step] = {"torch": lambda: dense(x), "ours": lambda: ours(x)}
    try:
        for name, (make, *options) in others.items():
            session = make(dense.weight.detach(), *options)
            steps[name] = lambda s=session: s.run(None, {"x": x.numpy()})
    except ImportError:
        print("onnxruntime is not installed")
    with torch.inference_mode():
        times = timed(steps, 9)
    setting = {"model": title, "batch": len(x), "density": density}
    keep("inference", setting, times, "ONNX Runtime" if "ONNX Runtime" in times else "torch")


def memory() -> None:
    """Bytes of parameters, gradients, AdamW's state, indices, and of what the backward pass keeps of a batch of 128."""
    for density in DENSITIES:
        layers = masked_mlp((1024, 4096, 1024), density)
        for name in ("dense MKL", "masked dense", "ours"):
            model = chain([linear_kinds()[name](layer) for layer in layers])
            optimizer = torch.optim.AdamW(model.parameters())
            kept: dict[int, int] = {}

            def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = model(torch.randn(128, 1024)).square().mean()
            loss.backward()
            optimizer.step()
            weights = list(model.parameters())
            fixed = [*weights, *model.buffers()]
            for tensor in fixed:
                kept.pop(tensor.untyped_storage().data_ptr(), None)
            state = [t for of in optimizer.state.values() for t in of.values() if isinstance(t, Tensor)]
            sizes = {
                "parameters": size(weights), "gradients": size([p.grad for p in weights if p.grad is not None]),
                "state": size(state), "indices": size(list(model.buffers())), "activations": sum(kept.values()),
            }  # fmt: skip
            row = {"bench": "memory", "model": "1024-4096-1024", "density": density, "method": name, **sizes}
            write({**row, **versions()})
            print(*row.values())


def size(tensors: list[Tensor]) -> int:
    """In bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def conv() -> None:
    """Training steps of a wide residual network, and the ceiling that leaves what is no 3x3 convolution."""
    x, target = torch.randn(32, 3, 32, 32), torch.randn(32, 10)
    for density in (0.1, 0.05, 0.02):
        dense = wide_resnet(density)
        last = wide_resnet(density).to(memory_format=torch.channels_last)
        steps = {
            "dense": trainer(dense, x, target),
            "dense channels_last": trainer(last, x.contiguous(memory_format=torch.channels_last), target),
            "ours": trainer(sparse(dense, "ours"), x, target),
            "without 3x3": trainer(stubbed(dense), x, target),
        }
        try:
            steps["sparseprop"] = trainer(sparse(dense, "sparseprop"), x, target)
        except ImportError:
            print("sparseprop is not installed")
        keep("conv", {"model": "WRN-16-4", "batch": 32, "density": density}, timed(steps, 3), "dense channels_last")


def roofline() -> None:
    """What one core gives at most, and what the kernels reach of it at 5 % density."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    vector = torch.randn(1 << 25)
    other = torch.empty_like(vector)
    (layer,) = masked_mlp((1024, 4096), 0.05)
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    thin(conv, 0.05)
    ours, ours_conv = SparseLinear.from_dense(layer), SparseConv2d.from_dense(conv)
    one, many, images = torch.randn(1, 1024), torch.randn(128, 1024), torch.randn(32, 64, 32, 32)
    steps = {
        "dense product": lambda: a @ b, "copy": lambda: other.copy_(vector), "linear, batch 1": lambda: ours(one),
        "linear, batch 128": lambda: ours(many), "3x3, batch 32": lambda: ours_conv(images),
    }  # fmt: skip
    with torch.inference_mode():
        times = timed(steps)
    flops = {
        "dense product": 2 * 512**3, "copy": 0, "linear, batch 1": 2 * ours.live, "linear, batch 128": 256 * ours.live,
        "3x3, batch 32": 2 * 32 * 32 * 32 * ours_conv.live,
    }  # fmt: skip
    moved = {  # bytes that have to come from memory or the last cache at least: values, int32 indices, inputs, outputs
        "dense product": 12 * 512**2, "copy": 2 * 4 * len(vector), "linear, batch 1": 8 * ours.live + 4 * 5120,
        "linear, batch 128": 8 * ours.live + 4 * 128 * 5120, "3x3, batch 32": 8 * ours_conv.live + 8 * images.numel(),
    }  # fmt: skip
    for name, ms in times.items():
        row = {"bench": "roofline", "method": name, "ms": round(ms, 4)}
        row |= {"gflops": round(flops[name] / ms / 1e6, 2), "gbs": round(moved[name] / ms / 1e6, 2)}
        write({**row, "isa": getattr(native(), "isa", "torch"), "cpu": cpu(), **versions()})
        print(*row.values())


def main() -> None:
    """What the command line names, or all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {"train": train, "inference": inference, "conv": conv, "memory": memory, "roofline": roofline}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
