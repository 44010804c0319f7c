"""An ONNX file with integers inside, checked against PyTorch before it is in its place."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import batch_size
from lightning_sparse.export.answers import TOLERANCE, Agreement, compare, require
from lightning_sparse.export.conversion import convert, outputs
from lightning_sparse.export.copies import float_inputs, plain_copy
from lightning_sparse.export.extras import need, wrong_arguments
from lightning_sparse.export.layers import QuantizedLayer
from lightning_sparse.export.placed import draft, wrong_path
from lightning_sparse.export.runtimes import RUNTIMES, Runtime, Session, session
from lightning_sparse.export.traced import exported, longer
from lightning_sparse.quant.quantization import Quantization


@dataclass(frozen=True)
class OnnxReport:
    """What :func:`to_onnx` has written.

    Attributes:
        path: of the file.
        size: in bytes.
        opset: version of the operations.
        agreement: of each runtime that was asked, on the example inputs; the worst where several batches were run.
    """

    path: Path
    size: int
    opset: int
    agreement: Mapping[str, Agreement]


def to_onnx(
    module: nn.Module,
    path: str | Path,
    example_inputs: Any,
    quantization: Quantization | Literal["float"] | None = None,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: Sequence[Runtime] = ("onnxruntime",),
    tolerance: float = TOLERANCE,
) -> OnnxReport:
    """Write the quantized module to an ONNX file, and compare what runtimes make of it with PyTorch.

    Weights are int8 in the file. It appears under ``path`` only when every check has passed: each runtime runs it twice
    on the example inputs, and with ``dynamic_batch`` on a batch of another size.

    Args:
        module: as for :func:`convert`; what that returned is taken as it is.
        path: of the file; its folder exists.
        example_inputs: what the module is called with; real data makes the check sharper.
        quantization: as for :func:`convert`; "float" writes the float module, to compare with.
        dynamic_batch: the first dimension of every input that has that of the first is free.
        opset: version of ONNX's operations; None leaves it to PyTorch.
        check: runtimes to compare with: "onnxruntime", "openvino".
        tolerance: the largest :attr:`Agreement.error`.

    Warns where ONNX Runtime, on this processor and left to itself, cuts off large sums of 8-bit products.

    Raises:
        ImportError: naming the extra that is missing.
        ValueError: on wrong arguments; with PyTorch's reason if the module cannot be exported; if answers of a runtime
            change from run to run, or differ from PyTorch's by more than rounding.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = to_onnx(net, "net.onnx", torch.randn(3, 4), "float")  # doctest: +SKIP
    """
    path = Path(path)
    _refuse(module, path, example_inputs, quantization, check, tolerance)
    need("onnx", "onnx", "onnxscript", *(("onnxruntime",) if "onnxruntime" in check else ()))
    if "openvino" in check:
        need("openvino", "openvino")
    small = _ready(module, example_inputs, quantization)
    inputs = float_inputs(example_inputs)
    model = exported(small, inputs, dynamic_batch, opset)
    with draft(path) as file:
        file.write_bytes(model.SerializeToString(deterministic=True))
        batches = [inputs, longer(inputs, batch_size(inputs) or 1)] if dynamic_batch else [inputs]
        found: dict[str, Agreement] = {runtime: _checked(small, file, batches, runtime, tolerance) for runtime in check}
    return OnnxReport(path, path.stat().st_size, max(o.version for o in model.opset_import if not o.domain), found)


def agreement(module: nn.Module, path: str | Path, example_inputs: Any, runtime: Runtime = "onnxruntime") -> Agreement:
    """How far a runtime's answers from an ONNX file are from those of a module in PyTorch, on these inputs.

    Args:
        module: what :func:`convert` returned, or any other.
        path: of the file.
        example_inputs: to compare on, of any batch size if the file's is free.
        runtime: "onnxruntime" or "openvino".

    Raises:
        ImportError: naming the extra that is missing.
        ValueError: if the runtime answers otherwise the second time.
    """
    wrong_arguments("agreement", module, example_inputs)
    return compared(plain_copy(module, "agreement"), session(path, runtime), example_inputs, runtime)


def is_converted(module: nn.Module) -> bool:
    """Whether :func:`convert` made it."""
    return any(isinstance(part, QuantizedLayer) for part in module.modules())


def _ready(module: nn.Module, inputs: Any, quantization: Quantization | Literal["float"] | None) -> nn.Module:
    if quantization == "float" or is_converted(module):
        twin = plain_copy(module, "to_onnx")
        outputs(twin, inputs, "to_onnx")
        return twin
    return convert(module, inputs, quantization)


def _checked(small: nn.Module, path: Path, batches: Sequence[Any], runtime: Runtime, tolerance: float) -> Agreement:
    try:
        run = session(path, runtime)
        found = [compared(small, run, batch, runtime) for batch in batches]
        if runtime == "onnxruntime":
            _warn_of_cut_sums(path, run, batches[0])
    except (ValueError, ImportError):
        raise
    except Exception as error:  # runtimes have exceptions of their own
        raise ValueError(f"to_onnx: {runtime} cannot run the file: {error}") from error
    worst = max(found, key=lambda one: one.error)
    require(worst, tolerance, "to_onnx")
    return worst


def _warn_of_cut_sums(path: Path, run: Session, batch: Any) -> None:
    """Two products of uint8 and int8 exceed int16, in which processors without VNNI add them."""
    loss = compare("onnxruntime", run(batch), session(path, "onnxruntime", exact=False)(batch)).error
    if loss > 1e-6:
        warnings.warn(
            "on this processor, which has no VNNI, ONNX Runtime by itself cuts off large sums of 8-bit products: error "
            f"{loss:.2g} of the output's spread. Quantize with bits=7, which cannot exceed them, or open the file with "
            "export.session(path), or elsewhere with "
            'SessionOptions.add_session_config_entry("session.x64quantprecision", "1")',
            stacklevel=4,
        )


def compared(small: nn.Module, run: Session, batch: Any, runtime: str) -> Agreement:
    """Run a batch twice, and compare with what the module says.

    Raises:
        ValueError: if two runs differ.
    """
    batch = float_inputs(batch)
    first, second = run(batch), run(batch)
    if not all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(first, second, strict=True)):
        raise ValueError(f"{runtime} gives two answers to one question; do not use this file")
    return compare(runtime, outputs(small, batch, "comparing"), first)


def _refuse(module: Any, path: Path, inputs: Any, quantization: Any, check: Sequence[str], tolerance: float) -> None:
    wrong_arguments("to_onnx", module, inputs)
    problems = wrong_path(path)
    if not (quantization is None or quantization == "float" or isinstance(quantization, Quantization)):
        problems.append(f"quantization must be a Quantization, 'float' or None, got {quantization!r}")
    if isinstance(check, str) or (wrong := [name for name in check if name not in RUNTIMES]):
        given = check if isinstance(check, str) else wrong
        problems.append(f"check takes a list of {', '.join(RUNTIMES)}, got {given!r}")
    if not tolerance > 0:
        problems.append(f"tolerance must be positive, got {tolerance}")
    raise_problems(problems, "to_onnx")
