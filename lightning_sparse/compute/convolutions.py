"""The operator of sparse convolutions: compiled kernels on CPUs, torch's dense convolution everywhere else."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sparse.compute.native import KINDS, call, native
from lightning_sparse.compute.ops import LIBRARY, compute_dtype, plain, refuse_twice
from lightning_sparse.compute.topology import positions

_INDEX = "Tensor pointer, Tensor column, Tensor turned_pointer, Tensor turned_row, Tensor order"
_SHAPE = "int[] kernel, int[] stride, int[] padding"
Index = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
MOST = 2**31 // 16  # numbers of the padded planes of a sample: offsets are int32, of up to sixteen samples


def _define() -> None:
    define: Callable[[str], None] = LIBRARY.define
    define(f"conv2d(Tensor x, Tensor values, Tensor? bias, {_INDEX}, {_SHAPE}) -> Tensor")
    define(
        f"conv2d_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, {_SHAPE}, "
        "bool to_x, bool to_values, bool to_bias) -> (Tensor, Tensor, Tensor)"
    )


def out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Outputs of a convolution on one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def _out_shape(x: Tensor, pointer: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> list[int]:
    sizes = [out_size(*axis) for axis in zip(x.shape[2:], kernel, stride, padding, strict=True)]
    return [x.shape[0], pointer.numel() - 1, *sizes]


def _sizes(x: Tensor, y_shape: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    axes = zip(x.shape[2:], y_shape[2:], kernel, stride, padding, strict=True)
    return torch.tensor([x.shape[1], y_shape[1], *(n for axis in axes for n in axis)], dtype=torch.int32)


def _fits(x: Tensor, y_shape: list[int], kernel: list[int], padding: list[int]) -> bool:
    """Whether the compiled kernels take it."""
    area = (x.shape[2] + 2 * padding[0] + 2 * kernel[0]) * (x.shape[3] + 2 * padding[1] + 2 * kernel[1])
    return (
        x.device.type == "cpu"
        and x.dtype in KINDS
        and max(x.shape[1], y_shape[1]) * area < MOST
        and all(p < k for p, k in zip(padding, kernel, strict=True))
        and native() is not None
    )


def _kernel(name: str) -> Callable[..., int]:
    found = native()
    assert found is not None
    return found.function(name)


def _dense(values: Tensor, pointer: Tensor, column: Tensor, inputs: int, kernel: list[int]) -> Tensor:
    outputs, rest = pointer.numel() - 1, inputs * kernel[0] * kernel[1]
    flat = values.new_zeros(outputs * rest)
    flat[positions(pointer, column, outputs, rest)] = values
    return flat.view(outputs, inputs, *kernel)


def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, pointer: Tensor, column: Tensor, turned_pointer: Tensor,
    turned_row: Tensor, order: Tensor, kernel: list[int], stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    shape, dtype = _out_shape(x, pointer, kernel, stride, padding), compute_dtype(x)
    values, bias = values.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous()
    if not _fits(x, shape, kernel, padding):
        with torch.autocast(x.device.type, enabled=False):
            weight = _dense(values, pointer, column, x.shape[1], kernel)
            return F.conv2d(x.to(dtype), weight, bias, stride, padding).to(x.dtype).contiguous()
    y, x = x.new_empty(shape), x.contiguous()
    if y.numel():
        tensors = (_sizes(x, shape, kernel, stride, padding), pointer, column, values, bias, x, y)
        call(_kernel("conv_forward"), (KINDS[x.dtype], torch.get_num_threads(), x.shape[0]), tensors)
    return y


def _conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, pointer: Tensor, column: Tensor, turned_pointer: Tensor,
    turned_row: Tensor, order: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    to_x: bool, to_values: bool, to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape, dtype = _out_shape(x, pointer, kernel, stride, padding), compute_dtype(x)
    own, grad, wanted = values.to(dtype).contiguous(), grad.to(x.dtype).contiguous(), (to_x, to_values, to_bias)
    if not _fits(x, shape, kernel, padding):
        return _conv2d_backward_torch(grad, x, values, own, (pointer, column), kernel, stride, padding, wanted)
    gx, gvalues = x.new_empty(x.shape if to_x else 0), own.new_empty(own.shape if to_values else 0)
    gbias = own.new_empty(shape[1] if to_bias else 0)
    if not grad.numel():
        return gx.zero_(), gvalues.zero_().to(values.dtype), gbias.zero_()
    tensors = (
        *(_sizes(x, shape, kernel, stride, padding), pointer, column, turned_pointer, turned_row, order, own),
        *(x.contiguous(), grad, *(g if w else None for g, w in zip((gx, gvalues, gbias), wanted, strict=True))),
    )
    call(_kernel("conv_backward"), (KINDS[x.dtype], torch.get_num_threads(), x.shape[0]), tensors)
    return gx, gvalues.to(values.dtype), gbias


def _conv2d_backward_torch(
    grad: Tensor, x: Tensor, values: Tensor, own: Tensor, index: tuple[Tensor, Tensor],
    kernel: list[int], stride: list[int], padding: list[int], wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    pointer, column = index
    weight = _dense(own, pointer, column, x.shape[1], kernel)
    gx, gweight, gbias = torch.ops.aten.convolution_backward(
        grad.to(own.dtype), x.to(own.dtype), weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], 1, wanted
    )
    places = positions(pointer, column, len(weight), weight[0].numel())
    return (
        gx.to(x.dtype).contiguous() if wanted[0] else x.new_empty(0),
        gweight.reshape(-1)[places].to(values.dtype) if wanted[1] else values.new_empty(0),
        gbias if wanted[2] else own.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, *index = inputs[:8]
    ctx.save_for_backward(x, values, *index)
    ctx.shape, ctx.bias_dtype = inputs[8:], None if bias is None else bias.dtype


def _derive(backward: Callable[..., Any], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    gx, gvalues, gbias = backward(grad, *ctx.saved_tensors, *ctx.shape, *wanted)
    gbias = gbias if ctx.bias_dtype is None else gbias.to(ctx.bias_dtype)
    found = (g if w else None for g, w in zip((gx, gvalues, gbias), wanted, strict=True))
    return (*found, *(None for _ in range(8)))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _derive(torch.ops.lightning_sparse.conv2d_backward, ctx, grad)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _setup(ctx, inputs, inputs[0])
        return _conv2d(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        twice = torch.is_grad_enabled()
        return _derive(torch.ops.lightning_sparse.conv2d_backward if twice else _conv2d_backward, ctx, grad)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index,
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
) -> Tensor:  # fmt: skip
    """A two-dimensional convolution of one group, without dilation, for a weight by its live entries.

    Args:
        x: ``(batch, inputs, height, width)``, floating point.
        values: the live entries, in the order of the flat weight.
        bias: ``(outputs,)`` or None.
        index: of :func:`~lightning_sparse.compute.topology.conv_topology`.
        kernel: rows and columns.
        stride: of rows and columns.
        padding: with zeros, of rows and columns.
    """
    if not plain(x):
        return cast(
            Tensor,
            torch.ops.lightning_sparse.conv2d(x, values, bias, *index, list(kernel), list(stride), list(padding)),
        )
    run = _Eager.apply if torch.is_grad_enabled() else _conv2d
    return cast(Tensor, run(x, values, bias, *index, list(kernel), list(stride), list(padding)))


def _fake(
    x: Tensor, values: Tensor, bias: Tensor | None, pointer: Tensor, column: Tensor, turned_pointer: Tensor,
    turned_row: Tensor, order: Tensor, kernel: list[int], stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    return x.new_empty(_out_shape(x, pointer, kernel, stride, padding))


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, pointer: Tensor, column: Tensor, turned_pointer: Tensor,
    turned_row: Tensor, order: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    to_x: bool, to_values: bool, to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    gbias = values.new_empty(grad.shape[1] if to_bias else 0, dtype=compute_dtype(x))
    return x.new_empty(x.shape if to_x else 0), values.new_empty(values.shape if to_values else 0), gbias


def _register() -> None:
    implement: Callable[[str, Callable[..., Any], str], None] = LIBRARY.impl
    implement("conv2d", _conv2d, "CompositeExplicitAutograd")
    implement("conv2d_backward", _conv2d_backward, "CompositeExplicitAutograd")
    name = "lightning_sparse::conv2d"
    torch.library.register_fake(name, _fake, lib=LIBRARY)
    torch.library.register_fake(f"{name}_backward", _fake_backward, lib=LIBRARY)
    torch.library.register_autograd(name, _backward, setup_context=_setup, lib=LIBRARY)
    torch.library.register_autograd(f"{name}_backward", refuse_twice, lib=LIBRARY)


_define()
_register()
