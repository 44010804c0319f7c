"""A tensor in the smallest of the ways that the file knows."""

import zlib
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sparse.core.masks import positions_bits
from lightning_sparse.export.container import NAMES, Part
from lightning_sparse.export.gaps import to_gaps
from lightning_sparse.export.rows import Row
from lightning_sparse.export.streams import Deflater, ValueWriter, flat_bytes
from lightning_sparse.quant.grid import Codes

_AT_ONCE = 1 << 20  # weights
_FULL = 0.25  # live share above which values are also tried without gaps
_WORDS = {"": 0, ".values": 40, ".gaps": 95, ".scale": 95}  # what a part adds to the header, about
_Way = dict[str, bytes | memoryview]
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Encoded(NamedTuple):
    """A tensor as the file holds it."""

    row: Row
    parts: tuple[Part, ...]
    live: int
    bound: float  # bits

    @property
    def kind(self) -> str:
        """How: ``"plain"``, ``"values"`` (compressed) or ``"gaps"`` (live values, compressed)."""
        return "plain" if not self.row.coded else "values" if self.row.live is None else "gaps"

    @property
    def size(self) -> int:
        """Bytes in the file, without the header."""
        return sum(len(part.data) for part in self.parts)


def encode(name: str, tensor: Tensor, codes: Codes | None = None) -> Encoded:
    """The tensor, or codes and scales in its place, in the smallest way.

    Args:
        name: of the tensor.
        tensor: contiguous, on the CPU; with ``codes``, only its type and shape count.
        codes: on the CPU.

    Example:
        >>> encoded = encode("w", torch.eye(100))
        >>> encoded.kind, encoded.live, [part.name for part in encoded.parts]
        ('gaps', 100, ['w.gaps', 'w.values'])
    """
    values = as_integers((tensor if codes is None else codes.codes).reshape(-1))
    live = int(values.count_nonzero())
    found = []
    if live < len(values):
        found.append(_with_gaps(values, live))
    if live >= _FULL * len(values):
        found.append(_whole(values))
    ways, bound = [way for way, _ in found], min(bits for _, bits in found)
    if codes is None:
        ways.append({"": flat_bytes(values)})
    else:
        scale, bits = _scale(codes)
        ways, bound = [{**way, ".scale": scale} for way in ways], bound + bits
    best = min(ways, key=lambda way: sum(len(data) + _WORDS[end] for end, data in way.items()))
    return Encoded(*_assemble(name, tensor, codes, best, live), live, bound)


def as_integers(tensor: Tensor) -> Tensor:
    """The same memory as integers, which are 0 where every bit is: -0.0 is a value like others."""
    return tensor.view(_INTEGERS[tensor.itemsize])


def _with_gaps(values: Tensor, live: int) -> tuple[_Way, float]:
    """Only what lives, and how far apart; and how many bits it takes at least."""
    gaps, stream, end = Deflater(), ValueWriter(values.itemsize), 0
    for number, chunk in enumerate(torch.split(values, _AT_ONCE)):
        places = chunk.nonzero().flatten()
        if len(places):
            positions = places + number * _AT_ONCE
            gaps.write(flat_bytes(to_gaps(positions, end)))
            stream.write(chunk[places])
            end = int(positions[-1]) + 1
    way: _Way = {".gaps": gaps.finish(), ".values": stream.finish()}
    return way, positions_bits(len(values), live) + stream.bits()


def _whole(values: Tensor) -> tuple[_Way, float]:
    """All values with their zeros."""
    stream = ValueWriter(values.itemsize)
    for chunk in torch.split(values, _AT_ONCE):
        stream.write(chunk)
    return {".values": stream.finish()}, stream.bits()


def _scale(codes: Codes) -> tuple[bytes | memoryview, float]:
    """The scales, compressed where that is less."""
    scale = codes.scale.contiguous()
    stream = ValueWriter(scale.itemsize)
    stream.write(scale)
    packed = stream.finish()
    return (packed if len(packed) < scale.nbytes else flat_bytes(scale)), stream.bits()


def _assemble(name: str, tensor: Tensor, codes: Codes | None, way: _Way, live: int) -> tuple[Row, tuple[Part, ...]]:
    dtype, shape = NAMES[tensor.dtype], tuple(tensor.shape)
    if "" in way:
        return Row(zlib.crc32(way[""]), dtype, shape), (Part(name, dtype, shape, way[""]),)
    bits, axis = (None, None) if codes is None else (codes.bits, codes.axis)
    row = Row(0, dtype, shape, True, live if ".gaps" in way else None, bits, axis)
    total, parts = 0, []
    for end in row.ends:
        data = way[end]
        total = zlib.crc32(data, total)
        kind, size = ("F32", len(data) // 4) if isinstance(data, memoryview) else ("U8", len(data))
        parts.append(Part(name + end, kind, (size,), data))
    return replace(row, crc32=total), tuple(parts)
