"""Two of four weights on NVIDIA GPUs, which skip the zeros."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import call
from lightning_sparse.core.select import clean
from lightning_sparse.export.answers import TOLERANCE, Agreement, compare, require
from lightning_sparse.export.conversion import outputs
from lightning_sparse.export.copies import float_inputs, plain_copy
from lightning_sparse.export.extras import wrong_arguments

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SemiStructured:
    """A module for the GPU.

    Attributes:
        module: a copy whose 2:4 weights are stored at half their size, with PyTorch's sparse kernels.
        layers: names of these Linear layers.
        left: other Linear layers, with the reason.
        agreement: of its answers on the example inputs with those of the dense module in float32.
    """

    module: nn.Module
    layers: tuple[str, ...]
    left: Mapping[str, str]
    agreement: Agreement


def to_semi_structured(
    module: nn.Module,
    example_inputs: Any,
    *,
    dtype: Literal["float16", "bfloat16"] = "float16",
    tolerance: float = TOLERANCE,
) -> SemiStructured:
    """A copy on the GPU whose Linear layers with two zeros in each four weights compute half the products.

    Train with ``MaskUpdater(..., pattern=NM(2, 4))``. Only Linear layers, of (outputs, inputs) that are multiples of
    what PyTorch asks for (32 and 64). Whether that is faster depends on sizes and GPU: measure.

    Args:
        module: as for :func:`convert`; it stays as it is.
        example_inputs: what it is called with.
        dtype: of the copy.
        tolerance: the largest :attr:`Agreement.error`.

    Raises:
        RuntimeError: without an NVIDIA GPU of compute capability 8.0 or newer.
        ValueError: if no layer has the pattern, with the reasons; if answers differ by more than rounding.
    """
    wrong_arguments("to_semi_structured", module, example_inputs)
    if dtype not in _DTYPES:
        raise ValueError(f"to_semi_structured: dtype must be 'float16' or 'bfloat16', got {dtype!r}")
    device = _device()
    dense = plain_copy(module, "to_semi_structured")
    expected = outputs(dense, example_inputs, "to_semi_structured")
    small = plain_copy(module, "to_semi_structured").to(device, _DTYPES[dtype])
    done, left = _compressed(small)
    if not done:
        reasons = [f"{name}: {why}" for name, why in left.items()] or ["the module has no Linear layer"]
        raise_problems(["no layer can be compressed", *reasons], "to_semi_structured")
    inputs = tree_map(lambda leaf: _moved(leaf, device, _DTYPES[dtype]), float_inputs(example_inputs))
    with torch.no_grad():
        got = [leaf.float().cpu() for leaf in tree_leaves(call(small, inputs)) if isinstance(leaf, Tensor)]
    found = compare("the GPU", expected, got)
    require(found, tolerance, "to_semi_structured")
    return SemiStructured(small, tuple(done), left, found)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether of each four weights in a row at most two are not zero.

    Example:
        >>> is_two_of_four(torch.tensor([[1.0, 0.0, 0.0, 2.0]])), is_two_of_four(torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        (True, False)
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight != 0).view(len(weight), -1, 4).sum(-1) <= 2).all())


def _device() -> torch.device:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise RuntimeError("to_semi_structured needs an NVIDIA GPU of compute capability 8.0 or newer")
    return torch.device("cuda")


def _compress(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls it a prototype
        packed: Tensor = torch.sparse.to_sparse_semi_structured(weight)
    return packed


def _compressed(small: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Names of layers that are, in place, and why others are not."""
    done, left = list[str](), dict[str, str]()
    for name, part in small.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if not is_two_of_four(part.weight):
            left[clean(name)] = "more than two of some four weights are not zero"
            continue
        try:
            part.weight = nn.Parameter(_compress(part.weight.detach().contiguous()), requires_grad=False)
            done.append(clean(name))
        except RuntimeError as error:
            left[clean(name)] = str(error).splitlines()[0]
    return done, left


def _moved(leaf: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)
