"""The file: a safetensors container, written whole or not at all.

Layout (https://github.com/huggingface/safetensors, README): eight bytes, the length of the header; the header, a JSON
object of tensors with their types, shapes and places; their bytes. Our header begins with a CRC-32 of itself and of its
length, and holds one of each tensor's bytes, so that no byte of the file can change unnoticed.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_sparse.export.placed import draft

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
BEGIN = b'{"__metadata__":{"checksum":"'
_BLANK = b"00000000"


class Part(NamedTuple):
    """One tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def header_of(parts: Sequence[Part], metadata: Mapping[str, str]) -> bytes:
    """Length and header for these parts, one behind the other in this order.

    Example:
        >>> head = header_of([Part("w", "U8", (2,), b"ab")], {"format": "x"})
        >>> head[:8].hex(), head[8:59].decode()
        ('7000000000000000', '{"__metadata__":{"checksum":"eb068c07","format":"x"')
        >>> head[59:].decode()
        '},"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}       '
    """
    table: dict[str, Any] = {METADATA: {"checksum": _BLANK.decode(), **metadata}}
    end = 0
    for part in parts:
        begin, end = end, end + len(part.data)
        table[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the bytes of tensors begin aligned
    head = len(text).to_bytes(8, "little") + text
    return _with_sum(head, sum_of(head).encode())


def sum_of(head: bytes) -> str:
    """The sum over length and header, with zeros where the sum itself is: 8 digits."""
    return f"{zlib.crc32(_with_sum(head, _BLANK)):08x}"


def _with_sum(head: bytes, digits: bytes) -> bytes:
    start = 8 + len(BEGIN)
    return head[:start] + digits + head[start + len(digits) :]


def write(path: Path, parts: Sequence[Part], metadata: Mapping[str, str]) -> int:
    """Write the file and return its bytes; it appears under its name when all of it is on the disk.

    Larger types come first, so that each tensor lies at a multiple of its item size.
    """
    ordered = sorted(parts, key=lambda part: -DTYPES[part.dtype].itemsize)
    with draft(path) as own, own.open("xb") as file:
        file.write(header_of(ordered, metadata))
        for part in ordered:
            file.write(part.data)
        return file.tell()
