"""A tensor from the file, when all of it is what was written."""

import zlib
from math import inf

import torch
from torch import Tensor

from lightning_sparse.export.container import DTYPES
from lightning_sparse.export.encode import as_integers
from lightning_sparse.export.gaps import from_gaps
from lightning_sparse.export.reader import TORN, Reader
from lightning_sparse.export.rows import Row
from lightning_sparse.export.streams import Inflater, ValueReader, flat_bytes
from lightning_sparse.quant.grid import along, levels

_AT_ONCE = 1 << 18  # values, or gaps
_Stored = dict[str, bytes]


def decode(file: Reader, name: str, row: Row) -> Tensor:
    """The tensor: its values, or codes times scales.

    Raises:
        ValueError: if a sum is wrong, or what the sum is right for contradicts itself.
    """
    dtype = DTYPES[row.dtype]
    if not row.coded:
        flat = torch.empty(row.numel, dtype=dtype)
        view = flat_bytes(flat)
        file.read_into(file.entries[name], view)
        _check_sum(name, row, [view])
        return _truths(name, flat).view(row.shape)
    stored = {end: file.read(file.entries[name + end]) for end in row.ends}
    _check_sum(name, row, list(stored.values()))
    if row.axis is None:
        flat = torch.zeros(row.numel, dtype=dtype)
        _fill(as_integers(flat), name, row, stored)
        return _truths(name, flat).view(row.shape)
    scale = _scales(name, row, row.axis, stored[".scale"], packed=file.entries[name + ".scale"].dtype == "U8")
    weight = torch.zeros(row.numel)
    _fill(weight, name, row, stored)
    weight = weight.view(row.shape)
    return weight.mul_(along(scale, weight, row.axis)).to(dtype)


def _check_sum(name: str, row: Row, stored: list[bytes] | list[memoryview]) -> None:
    total = 0
    for data in stored:
        total = zlib.crc32(data, total)
    if total != row.crc32:
        raise ValueError(f"the sum over {name} is {total:08x} and was {row.crc32:08x} when it was saved; {TORN}")


def _fill(flat: Tensor, name: str, row: Row, stored: _Stored) -> None:
    """Put the values where they belong; ``flat`` is zero, of their integers or float32 for codes."""
    count = row.numel if row.live is None else row.live
    dtype = flat.dtype if row.bits is None else torch.int8
    values = ValueReader(stored[".values"], f"{name}.values", dtype, count)
    if row.live is None:
        for part in torch.split(flat, _AT_ONCE):
            part.copy_(_on_grid(name, row, values.take(part.numel())))
        values.close()
        return
    gaps, end = Inflater(stored[".gaps"], f"{name}.gaps"), 0
    while symbols := gaps.read(_AT_ONCE):
        positions, end = from_gaps(torch.frombuffer(symbols, dtype=torch.uint8), end)
        if end > row.numel:
            raise ValueError(f"{name}.gaps run past the end of a shape {list(row.shape)}")
        flat.scatter_(0, positions, _on_grid(name, row, values.take(positions.numel())).to(flat.dtype))
    gaps.close()
    values.close()


def _on_grid(name: str, row: Row, values: Tensor) -> Tensor:
    """The values, when they can be codes of so many bits."""
    if row.bits is not None and values.numel():
        least, most = values.aminmax()
        if max(-int(least), int(most)) > levels(row.bits):
            raise ValueError(f"{name} has codes from {int(least)} to {int(most)}, too many for {row.bits} bits")
    return values


def _scales(name: str, row: Row, axis: int, stored: bytes, *, packed: bool) -> Tensor:
    """One scale for each channel, float32."""
    count = row.shape[axis]
    if packed:
        values = ValueReader(stored, f"{name}.scale", torch.float32, count)
        scale = values.take(count)
        values.close()
    else:
        scale = torch.frombuffer(bytearray(stored), dtype=torch.float32) if count else torch.empty(0)
    least, most = map(float, scale.aminmax()) if count else (1.0, 1.0)  # NaN, if there is one
    if not 0 < least <= most < inf:
        raise ValueError(f"{name}.scale has values that are not positive and finite")
    return scale


def _truths(name: str, flat: Tensor) -> Tensor:
    """The tensor; of booleans, when each is 0 or 1."""
    if flat.dtype == torch.bool and flat.numel() and int(flat.view(torch.uint8).max()) > 1:
        raise ValueError(f"{name} has booleans that are neither 0 nor 1")
    return flat
