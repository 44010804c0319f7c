"""The operations a converted module is written in: PyTorch's own, which exporters know."""

from typing import Any

import torch
from torch import Tensor

NAMESPACE = "quantized_decomposed"
_ROUND = "quantize_per_tensor(Tensor input, float scale, int zero_point, int quant_min, int quant_max, "
_VALUE = "dequantize_per_tensor(Tensor input, float scale, int zero_point, int quant_min, int quant_max, "
_VALUES = "dequantize_per_channel(Tensor input, Tensor scales, Tensor? zero_points, int axis, int quant_min, "
_LAST = "ScalarType dtype, *, ScalarType? out_dtype=None) -> Tensor"
_own: list[Any] = []  # a library is undone with its object


def operations() -> Any:
    """``torch.ops.quantized_decomposed``, by PyTorch's own definition or, where that is gone, by ours.

    The definition is in a module that PyTorch will take away (torch.ao.quantization); exporters look for the names.
    """
    try:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401
    except ImportError:
        define()
    return torch.ops.quantized_decomposed


def define(namespace: str = NAMESPACE) -> None:
    """Define the three operations that converted modules use, where nobody else did."""
    if _own:
        return
    library: Any = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{_ROUND}ScalarType dtype) -> Tensor")
    library.define(_VALUE + _LAST)
    library.define(f"{_VALUES}int quant_max, {_LAST}")
    for name, run in (("quantize_per_tensor", _quantize), ("dequantize_per_tensor", _dequantize)):
        library.impl(name, run, "CompositeExplicitAutograd")
    library.impl("dequantize_per_channel", _dequantize_channels, "CompositeExplicitAutograd")
    _own.append(library)


def _quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return (torch.round(x * (1.0 / scale)) + zero_point).clamp(low, high).to(dtype)


def _dequantize(
    codes: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype, *, out_dtype: Any = None
) -> Tensor:
    return (codes.to(out_dtype or torch.float32) - zero_point) * scale


def _dequantize_channels(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, axis: int, low: int, high: int, dtype: torch.dtype, *,
    out_dtype: Any = None,
) -> Tensor:  # fmt: skip
    shape = [-1 if dim == axis else 1 for dim in range(codes.ndim)]
    levels = codes if zeros is None else codes - zeros.view(shape)
    return (levels * scales.view(shape)).to(out_dtype or torch.float32)
