"""Compressed streams of bytes and of values: written piece by piece, read within bounds."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_sparse.export.entropy import PlaneCounts

BLOCK = 1 << 16  # values whose bytes are sorted by their place
_FEED = 1 << 16  # stored bytes that are decompressed at once
_TRIAL = 1 << 18  # bytes after which one way of compressing goes on alone: a block of float32
_WORTH = 0.98  # looking for matches takes ten times as long
_WAYS = (  # Huffman alone is the best for chance, and matches for patterns; both with the largest blocks
    (6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY),
    (9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY),
)
_MOST = 1040  # deflate makes nothing smaller than one 1032nd


def flat_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes; nothing is copied."""
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view


class Deflater:
    """Bytes in, the smallest of some zlib streams out.

    Example:
        >>> stream = Deflater()
        >>> stream.write(memoryview(bytes(1000)))
        >>> data = stream.finish()
        >>> len(data) < 20, zlib.decompress(data) == bytes(1000)
        (True, True)
    """

    def __init__(self) -> None:
        self._tries = [(zlib.compressobj(*way), bytearray()) for way in _WAYS]
        self._trial = _TRIAL

    def write(self, data: memoryview, *, apart: bool = False) -> None:
        """More bytes; ``apart``: what follows is of another kind and gets a Huffman code of its own."""
        head, rest = data[: self._trial], data[self._trial :]
        self._trial -= len(head)
        self._compress(head, apart=apart or (len(self._tries) > 1 and not self._trial))
        if len(self._tries) > 1 and not self._trial:
            huffman, matches = (len(out) for _, out in self._tries)
            self._tries = [self._tries[matches < _WORTH * huffman]]
        if len(rest):
            self._compress(rest, apart=apart)

    def _compress(self, data: memoryview, *, apart: bool) -> None:
        for stream, out in self._tries:
            out += stream.compress(data)
            if apart:
                out += stream.flush(zlib.Z_BLOCK)

    def finish(self) -> bytes:
        """The whole stream."""
        for stream, out in self._tries:
            out += stream.flush()
        return bytes(min((out for _, out in self._tries), key=len))


class Inflater:
    """The other way, never more than asked for, whatever the stream would give.

    Args:
        data: a zlib stream.
        what: whose it is, for errors.

    Raises:
        ValueError: where it ends early, is no zlib stream, or its own sum does not fit.

    Example:
        >>> stream = Inflater(zlib.compress(bytes(1000)), "w.gaps")
        >>> len(stream.read(300)), len(stream.read(2000))
        (300, 700)
        >>> stream.close()
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._stream, self._data, self._at, self._what = zlib.decompressobj(), memoryview(data), 0, what

    def read(self, size: int) -> bytearray:
        """The next ``size`` bytes; fewer only at its end."""
        out = bytearray()
        while len(out) < size and not self._stream.eof:
            piece = self._stream.unconsumed_tail or self._next()
            try:
                got = self._stream.decompress(piece, size - len(out))
            except zlib.error as error:
                raise ValueError(f"{self._what} cannot be decompressed ({error})") from None
            if not got and not len(piece) and not self._stream.eof:
                raise ValueError(f"{self._what} ends before its values do")
            out += got
        return out

    def close(self) -> None:
        """Make sure that nothing is left.

        Raises:
            ValueError: if there is more.
        """
        if self.read(1) or self._stream.unused_data or self._at < len(self._data):
            raise ValueError(f"{self._what} goes on after its last value")

    def _next(self) -> memoryview:
        piece = self._data[self._at : self._at + _FEED]
        self._at += len(piece)
        return piece


def possible(stored: int, least: int, most: int) -> bool:
    """Whether a stream of so many bytes can hold ``least`` to ``most``: neither padded without end nor a bomb.

    Example:
        >>> possible(1_000, 1_000_000, 1_000_000), possible(1_000, 2_000_000, 2_000_000), possible(10_000, 0, 1_000)
        (True, False, False)
    """
    return least <= _MOST * stored and stored <= most + most // 256 + 64


class ValueWriter:
    """Values in, a compressed stream of them out, and what their entropy is.

    In blocks of 65,536 values: the lowest byte of each, then the second of each, and so on. Signs and exponents are far
    from random and mantissas are not, so a code for each of them saves a sixth of float32.

    Args:
        itemsize: bytes of a value.

    Example:
        >>> values = ValueWriter(4)
        >>> values.write(torch.tensor([1.0, 2.0]))
        >>> zlib.decompress(values.finish()).hex()
        '0000000080003f40'
    """

    def __init__(self, itemsize: int) -> None:
        self._itemsize, self._stream, self._counts = itemsize, Deflater(), PlaneCounts(itemsize)
        self._held: list[Tensor] = []

    def write(self, values: Tensor) -> None:
        """More values, one after another."""
        self._held.append(values)
        if sum(map(len, self._held)) >= BLOCK:
            *blocks, rest = torch.split(torch.cat(self._held), BLOCK)
            self._held = [rest]
            for block in blocks:
                self._block(block)

    def finish(self) -> bytes:
        """The whole stream."""
        for values in torch.split(torch.cat(self._held), BLOCK) if self._held else ():
            self._block(values)
        return self._stream.finish()

    def bits(self) -> float:
        """The entropy of what was written."""
        return self._counts.bits()

    def _block(self, values: Tensor) -> None:
        rows = values.view(torch.uint8).view(-1, self._itemsize)
        for place in range(self._itemsize):
            plane = rows[:, place].contiguous()  # a plane at a time: transposing bytes is four times slower
            self._counts.add(place, plane)
            self._stream.write(flat_bytes(plane), apart=self._itemsize > 1)


class ValueReader:
    """The other way.

    Args:
        data: the stream.
        what: whose it is, for errors.
        dtype: of the values.
        size: how many there must be.

    Example:
        >>> values = ValueReader(zlib.compress(bytes.fromhex("0000000080003f40")), "w.values", torch.float32, 2)
        >>> values.take(1), values.take(1)
        (tensor([1.]), tensor([2.]))
        >>> values.close()
    """

    def __init__(self, data: bytes, what: str, dtype: torch.dtype, size: int) -> None:
        self._stream, self._what, self._dtype = Inflater(data, what), what, dtype
        self._blocks = self._each(size)
        self._held = torch.empty(0, dtype=dtype)

    def take(self, size: int) -> Tensor:
        """The next ``size`` values.

        Raises:
            ValueError: where there are fewer.
        """
        parts, held = [self._held], self._held.numel()
        while held < size:
            block = next(self._blocks, None)
            if block is None:
                raise ValueError(f"{self._what} has fewer values than there are gaps")
            parts.append(block)
            held += block.numel()
        values = parts[-1] if held == parts[-1].numel() else torch.cat(parts)
        self._held = values[size:]
        return values[:size]

    def close(self) -> None:
        """Make sure that nothing is left.

        Raises:
            ValueError: if there is more.
        """
        if self._held.numel() or next(self._blocks, None) is not None:
            raise ValueError(f"{self._what} has more values than there are gaps")
        self._stream.close()

    def _each(self, size: int) -> Iterator[Tensor]:
        itemsize = self._dtype.itemsize
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            raw = self._stream.read(count * itemsize)
            if len(raw) < count * itemsize:
                raise ValueError(f"{self._what} ends before its values do")
            if itemsize > 1:
                planes, raw = raw, bytearray(len(raw))
                for place in range(itemsize):  # as fast as torch in large blocks, and many times faster in small ones
                    raw[place::itemsize] = planes[place * count : (place + 1) * count]
            yield torch.frombuffer(raw, dtype=self._dtype)
