"""Reading a safetensors container of a stranger: every claim of its header is checked before anything is believed."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lightning_sparse.export.container import BEGIN, DTYPES, METADATA, sum_of

_MOST_HEADER = 100_000_000  # the library's own limit
_MOST_DIMENSIONS, _MOST_WEIGHTS = 64, 2**60
TORN = "it is cut short or damaged: copy or save it again"
_OTHERS = {
    b"PK\x03\x04": "it is a torch.save file or another zip: load it with torch.load",
    b"\x80": "it is a pickle, as torch.save wrote them once: load it with torch.load(weights_only=True)",
    b"\x1f\x8b": "it is a gzip file: unpack it first",
}


class Entry(NamedTuple):
    """Where a tensor is: a type and shape, and its first byte and the one after its last, in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.begin


class Reader:
    """An open file whose header is what was written.

    Args:
        file: at its start.
        size: of the file, in bytes.

    Raises:
        ValueError: if the header is damaged, or says what cannot be.
    """

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file, self.size = file, size
        head = self._head()
        try:
            table = json.loads(head[8:], object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header is not JSON ({error}); {TORN}") from None
        self.metadata = _strings(table)
        self.intact = head.startswith(BEGIN, 8) and self.metadata.get("checksum") == sum_of(head)
        del table[METADATA]
        self.entries = {name: _entry(name, row, len(head)) for name, row in table.items()}
        self._check_places(len(head))

    def read(self, entry: Entry) -> bytes:
        """The bytes of a tensor.

        Raises:
            ValueError: if the file became shorter.
        """
        self._file.seek(entry.begin)
        data = self._file.read(entry.size)
        if len(data) != entry.size:
            raise ValueError(TORN)
        return data

    def read_into(self, entry: Entry, view: memoryview) -> None:
        """The same, without a copy in between; ``view`` has the entry's size."""
        self._file.seek(entry.begin)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise ValueError(TORN)
            view = view[count:]

    def _head(self) -> bytes:
        """The length and the header, as they are in the file."""
        first = self._file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > self.size - 8:
            for begin, why in _OTHERS.items():
                if first.startswith(begin):
                    raise ValueError(why)
            raise ValueError(f"a header of {length:,} bytes does not fit into a file of {self.size:,}; {TORN}")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes is absurd; safetensors allows {_MOST_HEADER:,}")
        return first + self._file.read(length)

    def _check_places(self, start: int) -> None:
        """Every byte belongs to one tensor."""
        end = start
        for name, entry in sorted(self.entries.items(), key=lambda one: (one[1].begin, one[1].end)):
            if entry.begin != end:
                raise ValueError(f"{name} begins at byte {entry.begin:,}, the tensor before ends at {end:,}; {TORN}")
            end = entry.end
        if end != self.size:
            raise ValueError(f"its tensors end at byte {end:,} of {self.size:,}; {TORN}")


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """A file, open while the block runs; what is wrong with it names it.

    Raises:
        ValueError: if it is not a file that can be read, or what the block raises.
    """
    try:
        if not path.is_file():
            path.stat()  # whether there is anything: FileNotFoundError
            raise ValueError("it is a folder, a device or a pipe, and not a file")
        with path.open("rb") as file:
            yield Reader(file, os.fstat(file.fileno()).st_size)
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _strings(table: object) -> dict[str, str]:
    """The metadata."""
    if not isinstance(table, dict):
        raise ValueError(f"its header is a {type(table).__name__}, not a table of tensors; {TORN}")
    rows = table.get(METADATA)
    if not isinstance(rows, dict):
        raise ValueError("it has no metadata of ours; load it with the safetensors library")
    if odd := [key for key, value in rows.items() if not isinstance(value, str)]:
        raise ValueError(f"its metadata has no text under {odd[0]!r}; {TORN}")
    return rows


def _entry(name: str, row: object, start: int) -> Entry:
    """One row of the header, when it can be true."""
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has not exactly dtype, shape and data_offsets; {TORN}")
    dtype, shape, places = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} has the unknown type {dtype!r}")
    if not possible_shape(shape) or not _counts(places) or len(places) != 2:
        raise ValueError(f"{name} has shape {shape!r} at {places!r}, which are not numbers from 0 up; {TORN}")
    begin, end = places
    if end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name} of shape {shape} and type {dtype} does not take {end - begin:,} bytes; {TORN}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def possible_shape(numbers: object) -> bool:
    """Whether these are numbers from 0 up whose product torch can count.

    Example:
        >>> possible_shape([2, 3]), possible_shape([2, -3]), possible_shape([2**40, 2**40]), possible_shape("23")
        (True, False, False, False)
    """
    if not isinstance(numbers, list) or not _counts(numbers):
        return False
    return len(numbers) <= _MOST_DIMENSIONS and prod(max(one, 1) for one in numbers) < _MOST_WEIGHTS


def _counts(numbers: object) -> bool:
    if not isinstance(numbers, list) or not {*map(type, numbers)} <= {int}:
        return False
    return not numbers or (min(numbers) >= 0 and max(numbers) < _MOST_WEIGHTS)
