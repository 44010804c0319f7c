"""What stands in a converted module for layers and for the places of activations."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.export.operations import operations
from lightning_sparse.quant.grid import Codes, levels
from lightning_sparse.quant.quantization import Range

Clip = tuple[float, float | None]


class ToGrid(nn.Module):
    """Rounds activations to a grid of 8-bit codes: quantize, dequantize.

    Args:
        grid: scale, zero point and bits; with fewer than 8 bits the outer codes are not used.
        clip: bounds that come before rounding; codes outside are not used either.
        signed: the same grid in int8, with a zero point that is 128 less.

    Example:
        >>> ToGrid(Range(0.5, 2, bits=3))(torch.tensor([-9.0, 0.2, 0.3, 9.0]))
        tensor([-1.0000,  0.0000,  0.5000,  2.5000])
    """

    def __init__(self, grid: Range, clip: Clip | None = None, signed: bool = False) -> None:
        super().__init__()
        self.scale, self.signed = grid.scale, signed
        self.zero_point = grid.zero_point - 128 * signed
        self.dtype = torch.int8 if signed else torch.uint8
        low, high = 0, 2**grid.bits - 1
        if clip is not None:
            low = max(low, grid.zero_point + round(clip[0] / grid.scale))
            high = high if clip[1] is None else min(high, grid.zero_point + round(clip[1] / grid.scale))
        self.bounds: tuple[float, float] | None = None  # as values; None where all codes are used
        if (low, high) != (0, 255):
            self.bounds = (low - grid.zero_point) * grid.scale, (high - grid.zero_point) * grid.scale

    def forward(self, x: Tensor) -> Tensor:
        ops, info = operations(), torch.iinfo(self.dtype)
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        where = (self.scale, self.zero_point, info.min, info.max, self.dtype)
        rounded: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *where), *where)
        return rounded

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"scale={self.scale:.4g}, zero_point={self.zero_point}, {self.dtype}"


class QuantizedLayer(nn.Module):
    """A layer whose weight is int8, and whose bias is int32 where its input is quantized.

    Args:
        layer: does the computing; its own weight, and its bias if one is given here, are taken out of it.
        codes: the weight.
        bias: float; None leaves the layer's own.
        step: the scale of the input: the bias becomes int32, with a scale of this times the weight's; None: float.
        entry: what the input goes through.
        leave: what the output goes through.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32, one for each output channel.
        bias_codes, bias_scale: int32 and float32.
    """

    codes: Tensor
    scale: Tensor
    bias_codes: Tensor
    bias_scale: Tensor

    def __init__(
        self, layer: nn.Module, codes: Codes, bias: Tensor | None = None, step: float | None = None,
        entry: ToGrid | None = None, leave: ToGrid | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.entry, self.leave = layer, entry, leave
        self.axis, self.bits = codes.axis, codes.bits
        self.register_buffer("codes", codes.codes)
        self.register_buffer("scale", codes.scale)
        self.register_buffer("zeros", torch.zeros(len(codes.scale), dtype=torch.int8))
        layer._parameters["weight"] = None
        self.quantized_bias = bias is not None and step is not None
        if bias is not None and step is None:
            layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        elif bias is not None and step is not None:
            layer._parameters["bias"] = None
            scale = (codes.scale * step).repeat(len(bias) // len(codes.scale))
            self.register_buffer("bias_codes", (bias.double() / scale.double()).round().to(torch.int32))
            self.register_buffer("bias_scale", scale)
            self.register_buffer("bias_zeros", torch.zeros(len(scale), dtype=torch.int32))

    @property
    def weight(self) -> Tensor:
        """As float32."""
        most = levels(8)
        value: Tensor = operations().dequantize_per_channel(
            self.codes, self.scale, self.zeros, self.axis, -most, most, torch.int8
        )
        return value

    @property
    def bias(self) -> Tensor | None:
        """As float32."""
        if not self.quantized_bias:
            return self.layer._parameters.get("bias")
        info = torch.iinfo(torch.int32)
        value: Tensor = operations().dequantize_per_channel(
            self.bias_codes, self.bias_scale, self.bias_zeros, 0, info.min, info.max, torch.int32
        )
        return value

    def forward(self, input: Tensor, output_size: Any = None) -> Any:
        x = input if self.entry is None else self.entry(input)
        own = self.layer._parameters
        bias = own.get("bias")
        own["weight"] = self.weight  # type: ignore[assignment]  # for the time of this call
        if self.quantized_bias:
            own["bias"] = self.bias  # type: ignore[assignment]
        try:
            out = self.layer(x) if output_size is None else self.layer(x, output_size)
        finally:
            own["weight"] = None
            if self.quantized_bias:
                own["bias"] = bias
        return out if self.leave is None else self.leave(out)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a layer (``out_features`` ...) is the layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"bits={self.bits}, bias={'int32' if self.quantized_bias else 'float'}"
