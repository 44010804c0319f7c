"""The grid that a weight is quantized on: symmetric, one scale for each output channel, zero only where it was."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sparse.core.select import inputs_first

BITS = (2, 3, 4, 5, 6, 7, 8)
FEW = 3  # bits up to which a scale is fitted


@dataclass(frozen=True)
class Codes:
    """A quantized weight: integers and the scales of its output channels.

    Attributes:
        codes: int8, of the weight's shape; 0 where the weight is dead.
        scale: float32, one for each output channel, positive.
        axis: the dimension of the output channels.
        bits: how many a live weight needs: codes are 1 to ``levels(bits)`` and -1 to ``-levels(bits)``.

    Example:
        >>> Codes(torch.tensor([[2, 0], [-1, 1]], dtype=torch.int8), torch.tensor([0.5, 2.0]), 0, 8).weight()
        tensor([[ 1.,  0.],
                [-2.,  2.]])
    """

    codes: Tensor
    scale: Tensor
    axis: int
    bits: int

    def weight(self) -> Tensor:
        """Code times scale, float32."""
        return self.codes * along(self.scale, self.codes, self.axis)


def levels(bits: int) -> int:
    """The largest code. The mask says what is zero, so all codes are for live weights: two bits stand for four values.

    Eight bits stop at 127, which is what int8 holds on both sides.

    Example:
        >>> [levels(bits) for bits in (2, 3, 4, 8)]
        [2, 4, 8, 127]
    """
    return min(int(2 ** (bits - 1)), 127)


def output_axis(module: nn.Module) -> int:
    """The dimension of the output channels in the weight of a layer; groups of a transposed convolution share scales.

    Example:
        >>> output_axis(nn.Linear(3, 2)), output_axis(nn.ConvTranspose2d(3, 2, 1))
        (0, 1)
    """
    return 1 if inputs_first(module) else 0


def along(scale: Tensor, weight: Tensor, axis: int) -> Tensor:
    """The scales, shaped so that they spread over the weight."""
    return scale.view([-1 if dim == axis else 1 for dim in range(weight.ndim)])


@torch.no_grad()
def scales(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """One scale for each output channel, float32: the largest weight is the largest code.

    Clipping large weights helps dense layers and harms sparse ones, whose few large weights carry the model. With two
    or three bits there are too few codes to spend one on the largest: from there the scale goes twice to where the
    squared error is least with the codes that it gives (Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489). A
    channel without live weights has scale 1. Last, a scale is rounded to what bfloat16 holds, by 1/512 at most: half of
    its bytes are 0 then, which files leave out, and its product with a code is exact, so what is on a grid stays there.

    Args:
        weight: float, of any shape; zeros are dead.
        bits: 2 to 8.
        axis: of the output channels.

    Example:
        >>> scales(torch.tensor([[1.27, 0.0, -0.3], [0.0, 0.0, 0.0]]), 8)
        tensor([0.0100, 1.0000])
        >>> scales(torch.tensor([[3.0, 0.0, -1.0]]), 2)  # codes 2, 1: (2 * 3 + 1 * 1) / (2 * 2 + 1 * 1) ~ 179 / 128
        tensor([1.3984])
    """
    return _scales(weight.abs().float(), bits, axis)


@torch.no_grad()
def integers(weight: Tensor, scale: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The codes as floats, 0 exactly where the weight is: what lives rounds to 1 or -1 at least.

    So the pattern of zeros in the integers is the mask, and no live weight is lost to rounding. Others round small
    live weights to zero.

    Example:
        >>> integers(torch.tensor([[1.27, 0.0, -0.001]]), torch.tensor([0.01]), 8)
        tensor([[127.,   0.,  -1.]])
    """
    return _round(weight.abs().float(), scale, bits, axis).mul_(weight.sign())


@torch.no_grad()
def snap(weight: Tensor, bits: int, axis: int, work: Tensor) -> None:
    """Put the weight on its grid, in place: the nearest that can be quantized without loss.

    Args:
        weight: float, of any shape and type.
        bits: 2 to 8.
        axis: of the output channels.
        work: float32 of the same shape, to compute in: new memory costs more than the arithmetic.

    Example:
        >>> weight = torch.tensor([[6.0, 0.0, -1.6, 0.2]])
        >>> snap(weight, 4, 0, torch.empty(1, 4))
        >>> weight
        tensor([[ 6.0000,  0.0000, -1.5000,  0.7500]])
    """
    if weight.dtype is work.dtype:
        torch.abs(weight, out=work)
    else:
        work.copy_(weight).abs_()
    scale = _scales(work, bits, axis)
    _round(work, scale, bits, axis).mul_(along(scale, work, axis))
    weight.sign_().mul_(work)


@torch.no_grad()
def quantize(weight: Tensor, bits: int, axis: int = 0) -> Codes:
    """Codes and scales of a weight.

    Raises:
        ValueError: on a weight with NaN or infinity.

    Example:
        >>> quantize(torch.tensor([[6.0, 0.0, -1.6, 0.2]]), 4).codes
        tensor([[ 8,  0, -2,  1]], dtype=torch.int8)
    """
    if not weight.isfinite().all():
        raise ValueError("a weight with NaN or infinity cannot be quantized")
    scale = scales(weight, bits, axis)
    return Codes(integers(weight, scale, bits, axis).to(torch.int8), scale, axis, bits)


def _scales(size: Tensor, bits: int, axis: int) -> Tensor:
    rest = [dim for dim in range(size.ndim) if dim != axis]
    scale = _usable(size.amax(rest) / levels(bits))
    if bits > FEW:
        return _short(scale, bits)
    live = size > 0
    for _ in range(2):
        codes = _round(size.clone(), scale, bits, axis).mul_(live)
        squares = codes.square().sum(rest)
        scale = _usable((size * codes).sum(rest) / squares.clamp(min=1))
    return _short(scale, bits)


def _usable(scale: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny  # below, a quotient would be no number
    return torch.where(scale > 0, scale.clamp(min=tiny), torch.ones_like(scale))


def _short(scale: Tensor, bits: int) -> Tensor:
    """The nearest that bfloat16 holds, but where its largest code would overflow."""
    short = scale.bfloat16().float()
    return torch.where((short * levels(bits)).isfinite(), short, scale)


def _round(size: Tensor, scale: Tensor, bits: int, axis: int) -> Tensor:
    """In place."""
    return size.div_(along(scale, size, axis)).round_().clamp_(1, levels(bits))
