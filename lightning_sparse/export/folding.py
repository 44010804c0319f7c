"""A BatchNorm inside the integers before it: signs into codes, factors into scales, the rest into the bias."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sparse.core.select import CONVS, TRANSPOSED, inputs_first
from lightning_sparse.quant.grid import Codes, along

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LEAST = 1e-30  # of a scale, so that its product with another is still a normal number
_ROOM = 2**30  # of a bias in int32: the other half is for what is added to it


def is_linear_in_weight(layer: nn.Module) -> bool:
    """Whether it computes what PyTorch's layer of its kind does: a subclass may do something else with its weight.

    Example:
        >>> is_linear_in_weight(nn.Conv2d(1, 1, 1)), is_linear_in_weight(nn.BatchNorm2d(1))
        (True, False)
    """
    if isinstance(layer, CONVS):
        base = next(kind for kind in CONVS if isinstance(layer, kind))
        return type(layer).forward is base.forward and type(layer)._conv_forward is base._conv_forward
    if isinstance(layer, TRANSPOSED):
        return any(type(layer).forward is kind.forward for kind in TRANSPOSED)
    return type(layer).forward is nn.Linear.forward or inputs_first(layer)


def can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether nothing but a factor and a shift for each output channel stands between them.

    Groups of a transposed convolution share their scales, which BatchNorm would part.
    """
    apart = isinstance(layer, TRANSPOSED) and layer.groups > 1
    return type(norm) in _NORMS and is_linear_in_weight(layer) and not apart


@torch.no_grad()
def fold(codes: Codes, bias: Tensor | None, norm: _BatchNorm) -> tuple[Codes, Tensor]:
    """The weight and bias that do what layer and norm do in evaluation.

    Exact in the integers: ``q(w * gamma / std) = sign(gamma) * q(w)``, as grids are symmetric and each channel has its
    own. Where gamma is 0 the codes stay and the scale is next to nothing, so that the zeros are still the mask's.

    Args:
        codes: of the layer's weight.
        bias: of the layer.
        norm: a BatchNorm with running statistics.

    Raises:
        ValueError: where the norm has NaN, infinity or a negative variance.

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0).requires_grad_(False)
        >>> _ = norm.weight.fill_(-3.0), norm.running_var.fill_(4.0)
        >>> weight, bias = fold(Codes(torch.tensor([[2, 0]], dtype=torch.int8), torch.ones(1), 0, 8), None, norm)
        >>> weight.codes, weight.scale
        (tensor([[-2,  0]], dtype=torch.int8), tensor([1.5000]))
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    factor = gamma / (var + norm.eps).sqrt()
    before = torch.zeros_like(mean) if bias is None else bias.double()
    shift = beta + (before - mean) * factor
    scale = (codes.scale.double() * factor.abs()).clamp(min=_LEAST).float()
    if not (shift.float().isfinite().all() and scale.isfinite().all()):
        raise ValueError("a BatchNorm with NaN, infinity or a negative variance cannot be folded")
    sign = torch.where(factor < 0, -1, 1).to(torch.int8)
    return Codes(codes.codes * along(sign, codes.codes, codes.axis), scale, codes.axis, codes.bits), shift.float()


@torch.no_grad()
def fit_bias(codes: Codes, bias: Tensor, step: float) -> Codes:
    """The weight on scales that are large enough for its bias to be an int32.

    A channel that its norm makes tiny beside its bias gets a larger scale; its live codes stay 1 or -1 at least. What
    such a channel says differs by less than ``inputs * 255 / 2**30`` of its bias from what it said, which is below a
    step of its output.

    Args:
        codes: of the weight.
        bias: float, one for each output channel.
        step: the scale of the input.

    Example:
        >>> tiny = Codes(torch.tensor([[100, 0, -3]], dtype=torch.int8), torch.tensor([1e-30]), 0, 8)
        >>> fit_bias(tiny, torch.ones(1), 1.0).codes
        tensor([[ 1,  0, -1]], dtype=torch.int8)
    """
    least = (bias.double().abs() / (_ROOM * step)).view(-1, len(codes.scale)).amax(0)
    scale = torch.maximum(codes.scale.double(), least)
    if bool((scale == codes.scale).all()):
        return codes
    share = along(codes.scale.double() / scale, codes.codes, codes.axis)
    size = (codes.codes.double().abs() * share).round().clamp(min=1)
    fitted = (codes.codes.sign() * torch.where(share < 1, size, codes.codes.double().abs())).to(torch.int8)
    return Codes(fitted, scale.float(), codes.axis, codes.bits)
