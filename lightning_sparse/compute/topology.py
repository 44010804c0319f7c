"""Where the non-zeros of a weight are: by rows for the output and their own gradient, by columns for the input's."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2048  # columns whose part of a panel of samples stays in the cache; as the kernels have it


def blocks(columns: int) -> int:
    """How many blocks a row of a linear layer with that many columns has.

    Example:
        >>> blocks(2048), blocks(2049)
        (1, 2)
    """
    return max(1, -(-columns // BLOCK))


@dataclass(frozen=True)
class Topology:
    """The live entries of a matrix ``(rows, columns)``, in the order of its rows: the order of their values.

    Attributes:
        pointer: int32, ``rows * blocks(columns) + 1``: where each block of each row begins.
        column: int32, one for each live entry.
        turned_pointer: int32, the same for the matrix by columns.
        turned_row: int32, the row of each live entry, by columns.
        order: int32, where each live entry by columns is among those by rows.
    """

    pointer: Tensor
    column: Tensor
    turned_pointer: Tensor
    turned_row: Tensor
    order: Tensor


def topology(mask: Tensor) -> Topology:
    """The topology of a boolean matrix.

    Example:
        >>> t = topology(torch.tensor([[True, False, True], [False, False, True]]))
        >>> t.pointer.tolist(), t.column.tolist()
        ([0, 2, 3], [0, 2, 2])
        >>> t.turned_pointer.tolist(), t.turned_row.tolist(), t.order.tolist()
        ([0, 1, 1, 3], [0, 0, 1], [0, 1, 2])
    """
    rows, columns = mask.shape
    row, column = mask.nonzero(as_tuple=True)
    order = torch.sort(column, stable=True).indices
    turned_row = row[order]
    return Topology(
        pointer=_pointer(row, column, rows, columns),
        column=column.int(),
        turned_pointer=_pointer(column[order], turned_row, columns, rows),
        turned_row=turned_row.int(),
        order=order.int(),
    )


def conv_topology(mask: Tensor) -> Topology:
    """The topology of a convolution's weight ``(outputs, inputs, *kernel)``.

    By rows it is the matrix ``(outputs, inputs * taps)``; turned, ``(inputs, outputs * taps)``: its gradient's view. No
    blocks: the kernels of convolutions have tiles of their own.

    Example:
        >>> t = conv_topology(torch.tensor([[[[True]], [[True]]], [[[True]], [[False]]]]))
        >>> t.pointer.tolist(), t.column.tolist()
        ([0, 2, 3], [0, 1, 0])
        >>> t.turned_pointer.tolist(), t.turned_row.tolist(), t.order.tolist()
        ([0, 2, 3], [0, 1, 0], [0, 2, 1])
    """
    matrix, turned = mask.flatten(1), mask.transpose(0, 1).flatten(1)
    row, column = matrix.nonzero(as_tuple=True)
    turned_row, turned_column = turned.nonzero(as_tuple=True)
    rank = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    rank[mask] = torch.arange(len(column), dtype=torch.int32, device=mask.device)
    return Topology(
        pointer=_pointer(row, column, len(matrix), 1),
        column=column.int(),
        turned_pointer=_pointer(turned_row, turned_column, len(turned), 1),
        turned_row=turned_column.int(),
        order=rank.transpose(0, 1).flatten(1)[turned],
    )


def positions(pointer: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """int64 indices of the live entries in the flat matrix, ascending.

    Example:
        >>> t = topology(torch.tensor([[True, False, True], [False, False, True]]))
        >>> positions(t.pointer, t.column, 2, 3).tolist()
        [0, 2, 5]
    """
    lengths = pointer.diff()
    row = torch.arange(len(lengths), device=pointer.device)
    if len(lengths) != rows:  # several blocks each
        row //= blocks(columns)
    return torch.repeat_interleave(row, lengths.long(), output_size=len(column)) * columns + column


def _pointer(major: Tensor, minor: Tensor, size: int, other: int) -> Tensor:
    n = blocks(other)
    block = minor // BLOCK if n > 1 else 0
    counts = torch.bincount(major * n + block, minlength=size * n)
    pointer = torch.zeros(size * n + 1, dtype=torch.int32, device=major.device)
    torch.cumsum(counts, 0, out=pointer[1:])
    return pointer
