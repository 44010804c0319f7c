"""ONNX Runtime and OpenVINO, as functions from tensors to tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.export.extras import need

Runtime = Literal["onnxruntime", "openvino"]
Session = Callable[[Any], list[Tensor]]
RUNTIMES: tuple[str, ...] = get_args(Runtime)


def session(
    path: str | Path, runtime: Runtime = "onnxruntime", *, threads: int | None = None, exact: bool = True
) -> Session:
    """An ONNX file, loaded: a function from the inputs of a module to its outputs, as tensors.

    On the CPU, in the precision of the file: left alone, OpenVINO computes floats in bfloat16 where the processor can.

    Args:
        path: an ONNX file.
        runtime: "onnxruntime" or "openvino".
        threads: to compute with; None leaves it to the runtime.
        exact: in ONNX Runtime, never cut off large sums of 8-bit products, as it does by itself on x86 processors
            without VNNI where codes go beyond 7 bits; up to four tenths slower there, and the same elsewhere.
            OpenVINO has no such option.

    Raises:
        ImportError: if the runtime is not installed.
        ValueError: on another runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    return _onnxruntime(Path(path), threads, exact) if runtime == "onnxruntime" else _openvino(Path(path), threads)


def _onnxruntime(path: Path, threads: int | None, exact: bool) -> Session:
    [ort] = need("onnx", "onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    loaded = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in loaded.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        found = loaded.run(None, {name: t.numpy() for name, t in feeds(names, inputs).items()})
        return [torch.from_numpy(array) for array in found]

    return run


def _openvino(path: Path, threads: int | None) -> Session:
    [openvino] = need("openvino", "openvino")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    loaded = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [port.get_any_name() for port in loaded.inputs]

    def run(inputs: Any) -> list[Tensor]:
        found = loaded({name: t.numpy() for name, t in feeds(names, inputs).items()})
        return [torch.from_numpy(found[port].copy()) for port in loaded.outputs]

    return run


def feeds(names: list[str], inputs: Any) -> Mapping[str, Tensor]:
    """Which tensor goes where: by name where a dict of tensors has the file's names, else in order.

    Raises:
        ValueError: if their numbers differ.

    Example:
        >>> feeds(["a", "b"], {"b": torch.tensor(2), "a": torch.tensor(1)})
        {'a': tensor(1), 'b': tensor(2)}
    """
    if isinstance(inputs, dict) and set(names) <= set(inputs) and all(isinstance(inputs[n], Tensor) for n in names):
        return {name: inputs[name].contiguous() for name in names}
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(leaves) != len(names):
        raise_problems([f"the file takes {names}, the inputs have {len(leaves)} tensors"], "running an ONNX file")
    return {name: leaf.contiguous() for name, leaf in zip(names, leaves, strict=True)}
