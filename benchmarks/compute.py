"""How fast layers are that compute only non-zeros, beside dense layers and other sparse ones.

    python benchmarks/compute.py [train] [inference] [conv] [roofline]

Peers: pip install sparselab sparseprop scipy onnx onnxruntime (each is left out where it is not there).
All in one process on one thread, in turns; the median of CPU times. Lines go to results/compute.jsonl.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from record import versions
from torch import Tensor, nn
from wide import sparse, stubbed, wide_resnet

from lightning_sparse.compute import SparseLinear
from lightning_sparse.compute.native import native, using

RESULTS = Path(__file__).parent / "results" / "compute.jsonl"
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
Step = Callable[[], object]


def timed(steps: Mapping[str, Step], rounds: int = 9) -> dict[str, float]:
    """Median CPU milliseconds of each, taken in turns, so that a busy machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    repeats = {}
    for name, step in steps.items():
        step()
        start = time.process_time()
        step()
        repeats[name] = max(1, int(2e-3 / max(time.process_time() - start, 1e-6)))
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                step()
            taken[name].append((time.process_time() - start) / repeats[name] * 1e3)
    return {name: median(times) for name, times in taken.items()}


def keep(bench: str, setting: Mapping[str, object], times: Mapping[str, float], reference: str) -> None:
    """One line a method into the file, and on the screen: how many times as fast as the reference."""
    isa = getattr(native(), "isa", "torch")
    for name, ms in times.items():
        row = {"bench": bench, **setting, "method": name, "ms": round(ms, 4), "isa": isa, **versions()}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    shown = "  ".join(f"{name} {ms:.2f}ms {times[reference] / ms:.2f}x" for name, ms in times.items())
    print(bench, *setting.values(), "|", shown, flush=True)


class OneDNN(torch.autograd.Function):
    """The three products of a linear layer by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise
        gx = product(grad, weight.t(), None, "none", [], "") if ctx.needs_input_grad[0] else None
        return gx, product(grad.t().contiguous(), x.t().contiguous(), None, "none", [], ""), grad.sum(0)


class OneDNNLinear(nn.Linear):
    """A dense layer by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return OneDNN.apply(x, self.weight, self.bias)


def same(dense: nn.Linear, kind: type[nn.Linear]) -> nn.Linear:
    """A layer of another class with the same weights."""
    other = kind(dense.in_features, dense.out_features)
    other.load_state_dict(dense.state_dict())
    return other


def linear_kinds() -> dict[str, Callable[[nn.Linear], nn.Module]]:
    """What a masked dense layer becomes, by name; peers where they are installed."""
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "dense MKL": lambda m: same(m, nn.Linear),
        "dense oneDNN": lambda m: same(m, OneDNNLinear),
        "ours": SparseLinear.from_dense,
        "torch operators": SparseLinear.from_dense,
    }
    try:
        from sparselab.nn import SparseLinear as Lab

        kinds["sparselab"] = lambda m: Lab(
            m.in_features, m.out_features, sparsity=1 - float((m.weight != 0).float().mean())
        )
    except ImportError:
        print("sparselab is not installed")
    try:
        from sparseprop.modules import SparseLinear as Prop

        kinds["sparseprop"] = Prop.from_dense
    except ImportError:
        print("sparseprop is not installed")
    return kinds


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


def masked_mlp(sizes: tuple[int, ...], density: float) -> list[nn.Linear]:
    """Layers with random non-zeros."""
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(torch.rand_like(layer.weight) < density)
    return layers


def chain(layers: list[nn.Module]) -> nn.Sequential:
    """With ReLU between."""
    parts = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def under_torch(step: Step) -> Step:
    """The same without our kernels."""

    def run() -> None:
        with using("torch"):
            step()

    return run


def train() -> None:
    """Training steps of two MLPs."""
    for sizes in ((1024, 4096, 1024), (784, 300, 100, 10)):
        for density in DENSITIES:
            layers = masked_mlp(sizes, density)
            x, target = torch.randn(128, sizes[0]), torch.randn(128, sizes[-1])
            steps = {}
            for name, kind in linear_kinds().items():
                step = trainer(chain([kind(layer) for layer in layers]), x, target)
                steps[name] = under_torch(step) if name == "torch operators" else step
            setting = {"model": "-".join(map(str, sizes)), "batch": 128, "density": density}
            keep("train", setting, timed(steps), "dense MKL")


def onnx_session(weight: Tensor, int8: bool) -> Any:
    """A dense linear layer in ONNX Runtime, with static int8 weights and inputs if asked for."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = weight.shape
    name = lambda value, key: numpy_helper.from_array(value.numpy(), key)  # noqa: E731
    nodes, constants = [], [name(weight.t().contiguous(), "w")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    if int8:
        scale = weight.abs().amax(1) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8).t().contiguous()
        constants = [name(rounded, "q"), name(scale, "s"), name(torch.zeros(outputs, dtype=torch.int8), "z")]
        constants += [name(torch.tensor(8 / 255), "xs"), name(torch.tensor(128, dtype=torch.uint8), "xz")]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        ]
        product = helper.make_node("MatMul", ["xd", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["B", n]) for key, n in (("x", inputs), ("y", outputs))
    ]
    graph = helper.make_graph([*nodes, product], "g", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def inference() -> None:
    """A linear layer 1024 to 4096, against torch and ONNX Runtime."""
    for batch in (1, 64):
        for density in DENSITIES:
            (layer,) = masked_mlp((1024, 4096), density)
            sparse, x = SparseLinear.from_dense(layer), torch.randn(batch, 1024)
            steps: dict[str, Step] = {"torch": lambda m=layer, x=x: m(x), "ours": lambda m=sparse, x=x: m(x)}
            try:
                for name, int8 in (("ONNX Runtime", False), ("ONNX Runtime int8", True)):
                    session = onnx_session(layer.weight.detach(), int8)
                    steps[name] = lambda s=session, x=x: s.run(None, {"x": x.numpy()})
            except ImportError:
                print("onnxruntime is not installed")
            with torch.no_grad():
                times = timed(steps, 15)
            keep("inference", {"model": "1024-4096", "batch": batch, "density": density}, times, list(times)[-2])


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
    """What this machine gives at most, and what share of it the linear kernels reach."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    vector = torch.randn(1 << 25)
    other = torch.empty_like(vector)
    (layer,) = masked_mlp((1024, 4096), 0.05)
    ours, x = SparseLinear.from_dense(layer), torch.randn(128, 1024)
    with torch.no_grad():
        times = timed({"product": lambda: a @ b, "copy": lambda: other.copy_(vector), "ours": lambda: ours(x)})
    flops = {"product": 2 * 512**3, "ours": 2 * 128 * ours.live}
    for name, count in flops.items():
        print(f"{name}: {count / times[name] / 1e6:.1f} GFLOP/s")
    print(f"copy: {2 * 4 * (1 << 25) / times['copy'] / 1e6:.1f} GB/s")


def main() -> None:
    """What the command line names, or all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {"train": train, "inference": inference, "conv": conv, "roofline": roofline}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
