"""Two runtimes, one model: how far their answers are apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sparse.core.errors import raise_problems

TOLERANCE = 0.05  # rounding gives 1e-6 to 1e-2; wrong kernels gave 0.4 and more


@dataclass(frozen=True)
class Agreement:
    """How answers of a runtime differ from PyTorch's.

    Attributes:
        runtime: by name.
        error: root of the mean squared difference, over the spread (standard deviation) of PyTorch's answer; of the
            output where it is largest. A value that is rounded the other way between two layers gives about 1e-3.
        largest: the largest difference over the range (largest less smallest) of that answer.
        same: share of rows whose largest entry is the same one, over outputs with more than one column; else None.
    """

    runtime: str
    error: float
    largest: float
    same: float | None


def compare(runtime: str, expected: Sequence[Tensor], got: Sequence[Tensor]) -> Agreement:
    """How far two lists of outputs are apart.

    Raises:
        ValueError: if number or shapes of outputs differ.

    Example:
        >>> compare("other", [torch.tensor([[0.0, 4.0], [4.0, 0.0]])], [torch.tensor([[0.0, 4.0], [4.0, 0.4]])])
        Agreement(runtime='other', error=0.10..., largest=0.10..., same=1.0)
    """
    shapes, others = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in got]
    if shapes != others:
        raise ValueError(f"{runtime} answers with outputs of the shapes {others}, PyTorch with {shapes}")
    rows = [_differences(a.double(), b.double()) for a, b in zip(expected, got, strict=True) if a.numel()]
    shares = [_same(a, b) for a, b in zip(expected, got, strict=True) if a.ndim > 1 and a.shape[-1] > 1 and a.numel()]
    errors, largest = [row[0] for row in rows], [row[1] for row in rows]
    return Agreement(runtime, max(errors, default=0.0), max(largest, default=0.0), min(shares, default=None))


def require(found: Agreement, tolerance: float, where: str) -> None:
    """Refuse answers that differ by more than rounding does.

    Raises:
        ValueError: naming the difference.
    """
    if found.error > tolerance:
        same = "" if found.same is None else f" and {found.same:.1%} of predictions the same"
        raise_problems(
            [
                f"{found.runtime} and PyTorch disagree: error {found.error:.3g} of the output's spread{same}; rounding "
                f"explains {tolerance:g}. On x86 processors without VNNI OpenVINO cuts off large int8 sums: quantize "
                "with bits=7. For a model whose outputs are all noise, "
                "give real data as example_inputs, or a larger tolerance"
            ],
            where,
        )


def _differences(expected: Tensor, got: Tensor) -> tuple[float, float]:
    if torch.equal(expected, got):
        return 0.0, 0.0
    if not torch.equal(expected.isfinite(), got.isfinite()):
        return float("inf"), float("inf")
    both = expected.isfinite()
    a, b = expected[both], got[both]
    if not a.numel():
        return 0.0, 0.0
    least = max(1e-3 * float(a.abs().max()), 1e-12)  # an output that is all one value
    spread = max(float(a.std(correction=0)), least)
    extent = max(float(a.max() - a.min()), least)
    return float((a - b).square().mean().sqrt()) / spread, float((a - b).abs().max()) / extent


def _same(expected: Tensor, got: Tensor) -> float:
    return float((expected.double().argmax(-1) == got.double().argmax(-1)).double().mean())
