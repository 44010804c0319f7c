"""The wide residual network of Zagoruyko and Komodakis (2016, https://arxiv.org/abs/1605.07146), dense and sparse."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sparse.compute import SparseConv2d


class Block(nn.Module):
    """Two 3x3 convolutions after batch norm and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        short = x if self.short is None else self.short(y)
        return short + self.conv2(F.relu(self.norm2(self.conv1(y))))


def wide_resnet(density: float, depth: int = 16, width: int = 4) -> nn.Sequential:
    """For CIFAR, with that share of the 3x3 weights of its blocks at random places."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    channels = 16
    for stage in range(3):
        for n in range((depth - 4) // 6):
            outputs = 16 * width * 2**stage
            parts.append(Block(channels, outputs, 2 if stage and not n else 1))
            channels = outputs
    parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    model = nn.Sequential(*parts)
    with torch.no_grad():
        for layer in inner(model):
            layer.weight.mul_(torch.rand_like(layer.weight) < density)
    return model


def inner(model: nn.Module) -> list[nn.Conv2d]:
    """The 3x3 convolutions of its blocks."""
    return [conv for block in model.modules() if isinstance(block, Block) for conv in (block.conv1, block.conv2)]


def replaced(model: nn.Module, to: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    """A copy with other modules for its inner convolutions."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, Block):
            block.conv1, block.conv2 = to(block.conv1), to(block.conv2)
    return model


def sparse(model: nn.Module, by: str) -> nn.Module:
    """By our layers, or by sparseprop's."""
    if by == "ours":
        return replaced(model, SparseConv2d.from_dense)
    from sparseprop.modules import SparseConv2d as Prop

    return replaced(model, Prop.from_dense)


class _Stub(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gx: Tensor) -> Tensor:
        ctx.save_for_backward(gx)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0].view_as(ctx.saved_tensors[0]), None, None


class Stub(nn.Module):
    """Takes the place of a convolution and no time: always the same output and gradient."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = [conv]
        self.kept: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            with torch.no_grad():
                self.kept = torch.randn_like(self.conv[0](x)), torch.randn_like(x)
        return _Stub.apply(x, *self.kept)


def stubbed(model: nn.Module) -> nn.Module:
    """What is left of the time when its inner convolutions take none."""
    return replaced(model, Stub)
