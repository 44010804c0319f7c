"""The operators that sparse layers call: registered with torch, so that compilers and exporters see them as they are.

On CPUs they call the compiled kernels, everywhere else, or without these, torch's own operators.
"""

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from lightning_sparse.compute.native import KINDS, call, native
from lightning_sparse.compute.topology import blocks

LIBRARY = torch.library.Library("lightning_sparse", "DEF")  # type: ignore[no-untyped-call]  # kept: so are its operators
_INDEX = "Tensor pointer, Tensor column, Tensor turned_pointer, Tensor turned_row, Tensor order"
_define: Callable[[str], None] = LIBRARY.define
_define(f"linear(Tensor x, Tensor values, Tensor? bias, {_INDEX}) -> Tensor")
_define(
    f"linear_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool to_x, bool to_values, bool to_bias)"
    " -> (Tensor, Tensor, Tensor)"
)
CHUNK = 1 << 22  # numbers that a fallback holds at a time


def outputs(x: Tensor, pointer: Tensor) -> int:
    """How many rows the weight has."""
    return (pointer.numel() - 1) // blocks(x.shape[-1])


def _check(x: Tensor, values: Tensor, turned_pointer: Tensor, rows: int) -> None:
    columns = (turned_pointer.numel() - 1) // blocks(rows)
    if x.shape[-1] != columns:
        raise ValueError(f"a sparse layer with {columns} inputs got x of shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"a sparse layer takes floating point numbers, got {x.dtype}")


def compute_dtype(x: Tensor) -> torch.dtype:
    """What values and sums have: float32 for half precision."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def as_kernels_take(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Of that type, without gaps; the usual case costs less than asking torch for it."""
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def _linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pointer: Tensor,
    column: Tensor,
    turned_pointer: Tensor,
    turned_row: Tensor,
    order: Tensor,
) -> Tensor:
    rows = outputs(x, pointer)
    _check(x, values, turned_pointer, rows)
    y = x.new_empty(*x.shape[:-1], rows)
    found = native() if x.device.type == "cpu" and x.dtype in KINDS else None
    dtype = compute_dtype(x)
    if found is None:
        return _linear_torch(x, values.to(dtype), bias, pointer, column, rows)
    batch, columns = y.numel() // rows if rows else 0, x.shape[-1]
    bias = None if bias is None else as_kernels_take(bias, dtype)
    values, x = as_kernels_take(values, dtype), as_kernels_take(x, x.dtype)
    if y.numel():
        sizes = (batch, rows, columns, blocks(columns))
        kernel = found.function("linear_forward")
        call(kernel, (KINDS[x.dtype], torch.get_num_threads(), *sizes), (pointer, column, values, bias, x, y))
    return y


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    pointer: Tensor,
    column: Tensor,
    turned_pointer: Tensor,
    turned_row: Tensor,
    order: Tensor,
    to_x: bool,
    to_values: bool,
    to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, dtype = grad.shape[-1], x.shape[-1], compute_dtype(x)
    found = native() if x.device.type == "cpu" and x.dtype in KINDS else None
    grad, own = grad.to(x.dtype), values.to(dtype).contiguous()
    if found is None:
        index = (pointer, column, turned_pointer, turned_row, order)
        return _linear_backward_torch(grad, x, values, own, index, to_x, to_values, to_bias)
    gx = x.new_empty(x.shape if to_x else 0)
    gvalues = own.new_empty(own.shape if to_values else 0)
    gbias = own.new_empty(rows if to_bias else 0)
    batch = x.numel() // columns if columns else 0
    if batch == 0 or rows == 0 or columns == 0:
        return gx.zero_(), gvalues.zero_().to(values.dtype), gbias.zero_()
    sizes = (batch, rows, columns, blocks(columns), blocks(rows))
    index = (pointer, column, turned_pointer, turned_row, order)
    wanted = (gx if to_x else None, gvalues if to_values else None, gbias if to_bias else None)
    inputs = (own, x.contiguous(), grad.contiguous())
    kernel = found.function("linear_backward")
    call(kernel, (KINDS[x.dtype], torch.get_num_threads(), *sizes), (*index, *inputs, *wanted))
    return gx, gvalues.to(values.dtype), gbias


def _row(pointer: Tensor, rows: int) -> Tensor:
    """The row of each live entry."""
    lengths = pointer.diff().view(rows, -1).sum(1)
    return torch.repeat_interleave(torch.arange(rows, device=pointer.device), lengths)


def _matrix(values: Tensor, pointer: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that CSR is in beta
        return torch.sparse_csr_tensor(
            pointer[:: blocks(columns)].contiguous(), column, values, (rows, columns), check_invariants=False
        )


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = torch.sparse.mm(matrix, x.t()).t()
    return found


def _linear_torch(x: Tensor, values: Tensor, bias: Tensor | None, pointer: Tensor, column: Tensor, rows: int) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).to(values.dtype)
    y = _product(_matrix(values, pointer, column, rows, x.shape[-1]), flat)
    y = y if bias is None else y + bias
    return y.to(x.dtype).reshape(*x.shape[:-1], rows).contiguous()


def _linear_backward_torch(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    own: Tensor,
    index: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    to_x: bool,
    to_values: bool,
    to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = grad.shape[-1], x.shape[-1]
    pointer, column, turned_pointer, turned_row, order = index
    g, flat = grad.reshape(-1, rows).to(own.dtype), x.reshape(-1, columns).to(own.dtype)
    gx, gvalues, gbias = x.new_empty(0), values.new_empty(0), own.new_empty(0)
    if to_x:
        turned = _matrix(own[order], turned_pointer, turned_row, columns, rows)
        gx = _product(turned, g)
        gx = gx.to(x.dtype).reshape(x.shape).contiguous()
    if to_values:
        gvalues = _dots(flat.t().contiguous(), g.t().contiguous(), column.long(), _row(pointer, rows)).to(values.dtype)
    if to_bias:
        gbias = g.sum(0)
    return gx, gvalues, gbias


def _dots(x: Tensor, g: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """The gradient of each live entry, a bounded number of samples at a time."""
    step = max(1, CHUNK // max(1, x.shape[1]))
    parts = [(x[column[k : k + step]] * g[row[k : k + step]]).sum(1) for k in range(0, max(1, column.numel()), step)]
    return torch.cat(parts)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, *index = inputs
    ctx.save_for_backward(x, values, *index)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _derive(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]], ctx: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    x, values, *index = ctx.saved_tensors
    gx, gvalues, gbias = backward(grad, x, values, *index, *wanted)
    gbias = gbias if ctx.bias_dtype is None else gbias.to(ctx.bias_dtype)
    found = (g if w else None for g, w in zip((gx, gvalues, gbias), wanted, strict=True))
    return (*found, None, None, None, None, None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _derive(torch.ops.lightning_sparse.linear_backward, ctx, grad)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, which takes longer than a small layer."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _setup(ctx, inputs, inputs[0])
        return _linear(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        twice = torch.is_grad_enabled()  # a graph of the gradient: the operator says that there is none
        return _derive(torch.ops.lightning_sparse.linear_backward if twice else _linear_backward, ctx, grad)


def plain(x: Tensor) -> bool:
    """Whether nobody watches: no compiler, tracer, mode or transform that would have to see the operator."""
    return not (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: tuple[Tensor, ...]) -> Tensor:
    """``x W^T + b`` for a weight by its live entries.

    Args:
        x: ``(..., inputs)``, floating point.
        values: the live entries, in the order of the flat weight.
        bias: ``(outputs,)`` or None.
        index: the five tensors of a :class:`~lightning_sparse.compute.topology.Topology`.
    """
    if not plain(x):
        return cast(Tensor, torch.ops.lightning_sparse.linear(x, values, bias, *index))
    if not torch.is_grad_enabled():
        return _linear(x, values, bias, *index)
    return cast(Tensor, _Eager.apply(x, values, bias, *index))  # type: ignore[no-untyped-call]


def refuse_twice(ctx: Any, *grads: Tensor) -> None:
    """The derivative of a gradient: there is none."""
    raise NotImplementedError("a gradient of a sparse layer's gradient: use compute='dense' for that")


def _fake_linear(x: Tensor, values: Tensor, bias: Tensor | None, pointer: Tensor, *index: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs(x, pointer))


def _fake_linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, pointer: Tensor, column: Tensor, turned_pointer: Tensor,
    turned_row: Tensor, order: Tensor, to_x: bool, to_values: bool, to_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    gbias = values.new_empty(grad.shape[-1] if to_bias else 0, dtype=compute_dtype(x))
    return x.new_empty(x.shape if to_x else 0), values.new_empty(values.shape if to_values else 0), gbias


_implement: Callable[[str, Callable[..., Any], str], None] = LIBRARY.impl
for _key in ("CPU", "CompositeExplicitAutograd"):
    _implement("linear", _linear, _key)
    _implement("linear_backward", _linear_backward, _key)
torch.library.register_fake("lightning_sparse::linear", _fake_linear, lib=LIBRARY)
torch.library.register_fake("lightning_sparse::linear_backward", _fake_linear_backward, lib=LIBRARY)
torch.library.register_autograd("lightning_sparse::linear", _backward, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("lightning_sparse::linear_backward", refuse_twice, lib=LIBRARY)
