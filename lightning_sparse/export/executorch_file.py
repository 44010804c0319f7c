"""A file for ExecuTorch, PyTorch's runtime for phones and small devices, checked before it is in its place."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sparse.channels.quiet import plain_paths
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.probe import untouched_randomness
from lightning_sparse.export.answers import TOLERANCE, Agreement, compare, require
from lightning_sparse.export.conversion import convert, outputs
from lightning_sparse.export.copies import float_inputs
from lightning_sparse.export.extras import hushed, need, wrong_arguments
from lightning_sparse.export.placed import draft, wrong_path
from lightning_sparse.export.traced import arguments, reason
from lightning_sparse.quant.quantization import Quantization

_PARTITIONER = "executorch.backends.xnnpack.partition.xnnpack_partitioner"


@dataclass(frozen=True)
class ExecutorchReport:
    """What :func:`to_executorch` has written.

    Attributes:
        path: of the file.
        size: in bytes.
        agreement: of ExecuTorch's answers on the example inputs with PyTorch's.
    """

    path: Path
    size: int
    agreement: Agreement


def to_executorch(
    module: nn.Module,
    path: str | Path,
    example_inputs: Any,
    quantization: Quantization | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> ExecutorchReport:
    """Write the quantized module to a ``.pte`` file for XNNPACK, and compare what ExecuTorch makes of it with PyTorch.

    The file takes inputs of the shapes of the examples. Layers that XNNPACK has no integers for (transposed and 3-d
    convolutions) make PyTorch's converter fail; leave these in float.

    Args:
        module: as for :func:`convert`.
        path: of the file; its folder exists.
        example_inputs: a batch of real data: grids of what comes out of Linear layers are found on it.
        quantization: as for :func:`convert`.
        tolerance: the largest :attr:`Agreement.error`.

    Raises:
        ImportError: if ExecuTorch is not installed.
        ValueError: on wrong arguments; with the converter's reason; if answers change from run to run, or differ from
            PyTorch's by more than rounding.
    """
    path = Path(path)
    wrong_arguments("to_executorch", module, example_inputs)
    raise_problems(wrong_path(path), "to_executorch")
    with _quiet():
        need("executorch", "executorch.exir", _PARTITIONER, "executorch.runtime")
    small = convert(module, example_inputs, quantization, target="executorch")
    with _quiet():
        content = _lowered(small, float_inputs(example_inputs))
        got = [_ran(content, float_inputs(example_inputs)) for _ in range(2)]
    if not all(torch.equal(a, b) for a, b in zip(*got, strict=True)):
        raise ValueError("ExecuTorch gives two answers to one question; this module cannot be exported")
    found = compare("ExecuTorch", outputs(small, example_inputs, "comparing"), got[0])
    require(found, tolerance, "to_executorch")
    with draft(path) as file:
        file.write_bytes(content)
    return ExecutorchReport(path, len(content), found)


def _lowered(small: nn.Module, inputs: Any) -> bytes:
    exir, partitioner = need("executorch", "executorch.exir", _PARTITIONER)
    args, kwargs = arguments(inputs)
    with untouched_randomness(), plain_paths(), torch.no_grad():
        try:
            program = torch.export.export(small, args, kwargs)
            parts = [partitioner.XnnpackPartitioner()]
            return bytes(exir.to_edge_transform_and_lower(program, partitioner=parts).to_executorch().buffer)
        except Exception as error:
            raise ValueError(f"to_executorch: this module cannot be exported: {reason(error)}") from error


def _ran(content: bytes, inputs: Any) -> list[Tensor]:
    [runtime] = need("executorch", "executorch.runtime")
    method = runtime.Runtime.get().load_program(content).load_method("forward")
    leaves = [leaf.contiguous() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return [leaf.clone() for leaf in method.execute(leaves) if isinstance(leaf, Tensor)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Its packages print and warn of their own inside."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with hushed(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
