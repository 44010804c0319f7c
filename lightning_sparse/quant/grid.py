"""The grid that a weight is quantized on: symmetric, one scale for each output channel, zero only where it was."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sparse.core.select import inputs_first

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Codes:
    """A quantized weight: integers and the scales of its output channels.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32, one for each output channel, positive.
        axis: the dimension of the output channels.
        bits: codes lie in ``-(2**(bits - 1) - 1) ... 2**(bits - 1) - 1``.

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
    """The largest code.

    Example:
        >>> [levels(bits) for bits in (2, 3, 4, 8)]
        [1, 3, 7, 127]
    """
    return int(2 ** (bits - 1)) - 1


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
    bits there is one magnitude, and the mean of those that live is the closest (Rastegari et al. 2016, XNOR-Net,
    https://arxiv.org/abs/1603.05279, equation 6, over live weights). A channel without live weights has scale 1.

    Args:
        weight: float, of any shape; zeros are dead.
        bits: 2 to 8.
        axis: of the output channels.

    Example:
        >>> scales(torch.tensor([[1.27, 0.0, -0.3], [0.0, 0.0, 0.0]]), 8)
        tensor([0.0100, 1.0000])
        >>> scales(torch.tensor([[3.0, 0.0, -1.0]]), 2)
        tensor([2.])
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
        >>> weight = torch.tensor([[3.0, 0.0, -1.6, 0.2]])
        >>> snap(weight, 3, 0, torch.empty(1, 4))
        >>> weight
        tensor([[ 3.,  0., -2.,  1.]])
    """
    torch.abs(work.copy_(weight), out=work)
    scale = _scales(work, bits, axis)
    _round(work, scale, bits, axis).mul_(along(scale, work, axis))
    weight.sign_().mul_(work)


@torch.no_grad()
def quantize(weight: Tensor, bits: int, axis: int = 0) -> Codes:
    """Codes and scales of a weight.

    Raises:
        ValueError: on a weight with NaN or infinity.

    Example:
        >>> quantize(torch.tensor([[3.0, 0.0, -1.6, 0.2]]), 3).codes
        tensor([[ 3,  0, -2,  1]], dtype=torch.int8)
    """
    if not weight.isfinite().all():
        raise ValueError("a weight with NaN or infinity cannot be quantized")
    scale = scales(weight, bits, axis)
    return Codes(integers(weight, scale, bits, axis).to(torch.int8), scale, axis, bits)


def _scales(size: Tensor, bits: int, axis: int) -> Tensor:
    rest = [dim for dim in range(size.ndim) if dim != axis]
    scale = size.sum(rest) / (size > 0).sum(rest).clamp(min=1) if bits == 2 else size.amax(rest) / levels(bits)
    tiny = torch.finfo(torch.float32).tiny  # below, a quotient would be no number
    return torch.where(scale > 0, scale.clamp(min=tiny), torch.ones_like(scale))


def _round(size: Tensor, scale: Tensor, bits: int, axis: int) -> Tensor:
    """In place."""
    return size.div_(along(scale, size, axis)).round_().clamp_(1, levels(bits))
