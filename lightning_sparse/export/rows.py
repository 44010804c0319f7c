"""What the file's metadata says of each tensor of the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from lightning_sparse.export.container import DTYPES
from lightning_sparse.export.gaps import SKIP
from lightning_sparse.export.reader import TORN, Entry, Reader, possible_shape
from lightning_sparse.export.streams import possible

FORMAT, VERSION, CODEC = "lightning_sparse.packed", "1", "gaps,zlib"
_ROW, _ALIAS = "tensor:", "alias:"
_SHAPE = r"((?:[0-9]{1,19}(?:,[0-9]{1,19})*)?)"
_CODED = rf"dtype=([A-Z0-9_]+) shape={_SHAPE} (?:live=([0-9]{{1,19}}) )?(?:bits=([2-8]) axis=([0-9]{{1,2}}) )?"
_PATTERN = re.compile(rf"(?:{_CODED})?crc32=([0-9a-f]{{8}})")


@dataclass(frozen=True)
class Row:
    """One tensor of the model: how to read it, and the sum over its bytes in the file.

    Attributes:
        crc32: of all that is stored of it.
        dtype: of the model's tensor, in safetensors' words.
        shape: of the model's tensor.
        coded: whether its values are compressed; else it lies there as it is.
        live: weights that are not zero, where only those are stored.
        bits: of its codes; None for values as they are.
        axis: the dimension of its scales.

    Example:
        >>> row = Row(0xDEADBEEF, "F32", (300, 784), coded=True, live=11760, bits=8, axis=0)
        >>> row.text()
        'dtype=F32 shape=300,784 live=11760 bits=8 axis=0 crc32=deadbeef'
        >>> parse(row.text(), None) == row
        True
    """

    crc32: int
    dtype: str
    shape: tuple[int, ...]
    coded: bool = False
    live: int | None = None
    bits: int | None = None
    axis: int | None = None

    @property
    def numel(self) -> int:
        """Weights, with the zeros."""
        return prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Of the model's tensor."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def ends(self) -> tuple[str, ...]:
        """What follows the name in the names of its parts, in the order of the sum over them."""
        if not self.coded:
            return ("",)
        here = {".gaps": self.live is not None, ".values": True, ".scale": self.bits is not None}
        return tuple(end for end, present in here.items() if present)

    @property
    def value_dtype(self) -> str:
        """Of what its values stream holds."""
        return self.dtype if self.bits is None else "I8"

    def text(self) -> str:
        """As the metadata holds it: of a tensor that lies there as it is only the sum."""
        words = [f"dtype={self.dtype}", f"shape={','.join(map(str, self.shape))}"] if self.coded else []
        words += [] if self.live is None else [f"live={self.live}"]
        words += [] if self.bits is None else [f"bits={self.bits}", f"axis={self.axis}"]
        return " ".join([*words, f"crc32={self.crc32:08x}"])


def parse(text: str, plain: Entry | None) -> Row | None:
    """The row of this text; None if it is none.

    Args:
        text: what :meth:`Row.text` wrote.
        plain: the entry of the tensor itself, where it lies there as it is.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    dtype, shape, live, bits, axis, crc32 = match.groups()
    if dtype is None:
        return None if plain is None else Row(int(crc32, 16), plain.dtype, plain.shape)
    sizes = [int(one) for one in shape.split(",") if one]
    if dtype not in DTYPES or not possible_shape(sizes):
        return None
    numbers = [None if one is None else int(one) for one in (live, bits, axis)]
    return Row(int(crc32, 16), dtype, tuple(sizes), True, *numbers)


def read_rows(file: Reader) -> tuple[dict[str, Row], dict[str, str]]:
    """The tensors of a file, and other names of some of them: whose name is whose.

    Raises:
        ValueError: if it is not a file of this version, or damaged, or contradicts itself.
    """
    metadata = dict(file.metadata)
    if metadata.get("format") != FORMAT:
        raise ValueError("it was not written by save_packed; load it with the safetensors library")
    if metadata.get("version") != VERSION or metadata.get("codec") != CODEC:
        written = f"version {metadata.get('version')!r} ({metadata.get('codec')!r})"
        raise ValueError(f"it is of {written}, this reads {VERSION!r} ({CODEC!r}): use the package that wrote it")
    if not file.intact:
        raise ValueError(f"the sum over its header is wrong; {TORN}")
    rows, used = {}, {"checksum", "format", "version", "codec"}
    taken: set[str] = set()
    for key, text in metadata.items():
        if key.startswith(_ROW):
            name = key.removeprefix(_ROW)
            row = parse(text, file.entries.get(name))
            if row is None:
                raise ValueError(f"{name} is described by {text!r}, which has no meaning")
            rows[name] = row
            taken |= _check_row(name, row, file.entries)
            used.add(key)
    if strays := sorted(set(file.entries) - taken):
        raise ValueError(f"{strays[0]} is no part of a tensor")
    aliases = {key.removeprefix(_ALIAS): name for key, name in metadata.items() if key.startswith(_ALIAS)}
    if wrong := [alias for alias, name in aliases.items() if name not in rows or alias in rows]:
        raise ValueError(f"{wrong[0]} is another name of {aliases[wrong[0]]}, which is no tensor, or is one itself")
    if unknown := metadata.keys() - used - {_ALIAS + alias for alias in aliases}:
        raise ValueError(f"its metadata has an unknown {min(unknown)!r}")
    return rows, aliases


def metadata_of(rows: Mapping[str, Row], aliases: Mapping[str, str]) -> dict[str, str]:
    """What :func:`read_rows` reads."""
    found = {"format": FORMAT, "version": VERSION, "codec": CODEC}
    found |= {_ROW + name: row.text() for name, row in rows.items()}
    return found | {_ALIAS + alias: name for alias, name in aliases.items()}


def _check_row(name: str, row: Row, entries: Mapping[str, Entry]) -> set[str]:
    """The names of its parts, if they can be those of such a tensor; nothing was read yet.

    Raises:
        ValueError: if one is missing, or of a size that cannot be.
    """
    if not row.coded:
        return {name}
    stored = row.numel if row.live is None else row.live
    if stored > row.numel:
        raise ValueError(f"{name} has {stored:,} live weights of {row.numel:,}")
    values = stored * DTYPES[row.value_dtype].itemsize
    sizes = {".values": (values, values)}
    if row.live is not None:
        sizes[".gaps"] = (stored, stored + (row.numel - stored) // SKIP)
    if row.axis is not None:
        if row.axis >= len(row.shape) or not DTYPES[row.dtype].is_floating_point:
            raise ValueError(f"{name} of type {row.dtype} and shape {list(row.shape)} has no scales along {row.axis}")
        sizes[".scale"] = (4 * row.shape[row.axis],) * 2
    for end, (least, most) in sizes.items():
        entry = entries.get(name + end)
        if entry is None:
            raise ValueError(f"{name} has no {name}{end}")
        plain = end == ".scale" and entry.dtype == "F32" and entry.size == most
        if not plain and not (entry.dtype == "U8" and possible(entry.size, least, most)):
            what = f"{entry.size:,} bytes of {entry.dtype}"
            raise ValueError(f"{name}{end} has {what}, which cannot hold {most:,} bytes of shape {list(row.shape)}")
    return {name + end for end in sizes}
