"""The format as docs/packed.md says it, a byte at a time: an own reader and writer, without torch."""

import json
import struct
import zlib
from itertools import product
from math import prod

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
BLOCK = 65536


def split(data):
    """Header and buffer of a file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def seal(head):
    """Length and header with the right sum, which is over both with zeros in its own place."""
    at = 8 + len('{"__metadata__":{"checksum":"')
    blank = head[:at] + b"00000000" + head[at + 8 :]
    return blank[:at] + f"{zlib.crc32(blank):08x}".encode() + blank[at + 8 :]


def join(table, buffer, *, padding=None):
    """A file of any header and buffer, with the right sum over the header."""
    table = dict(table)
    metadata = table.pop("__metadata__")
    rest = {key: text for key, text in metadata.items() if key != "checksum"}
    table = {"__metadata__": {"checksum": "00000000", **rest}, **table}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 if padding is None else padding)
    return seal(len(text).to_bytes(8, "little") + text) + buffer


def rebuilt(data, change):
    """A file whose tensors (name: [dtype, shape, bytes]) and metadata were changed, with all sums right again."""
    table, buffer = split(data)
    metadata = table.pop("__metadata__")
    parts = {n: [row["dtype"], row["shape"], buffer[slice(*row["data_offsets"])]] for n, row in table.items()}
    change(parts, metadata)
    for key, text in metadata.items():
        if key.startswith("tensor:"):
            name, total = key.removeprefix("tensor:"), 0
            for end in ("", ".gaps", ".values", ".scale") if "shape=" not in text else (".gaps", ".values", ".scale"):
                total = zlib.crc32(parts[name + end][2], total) if name + end in parts else total
            metadata[key] = text.rpartition("crc32=")[0] + f"crc32={total:08x}"
    table, buffer = {"__metadata__": metadata}, b""
    for name, (dtype, shape, part) in parts.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(buffer), len(buffer) + len(part)]}
        buffer += part
    return join(table, buffer)


def unsorted(raw, size):
    """Values of ``size`` bytes each, whose bytes were sorted by their place, 65,536 values at a time."""
    values = []
    for start in range(0, len(raw), BLOCK * size):
        block = raw[start : start + BLOCK * size]
        count = len(block) // size
        values += [bytes(block[place * count + i] for place in range(size)) for i in range(count)]
    return values


def places(gaps):
    """Where the live weights are."""
    at, found = 0, []
    for gap in gaps:
        at += gap
        if gap < 255:
            found.append(at)
            at += 1
    return found


def product_of(code, scale, dtype):
    """Code times scale in float32, then in the tensor's type, as bytes; float32 and float64 only."""
    rounded = struct.pack("<f", code * scale)  # exact in a double: 7 and 24 bits
    return rounded if dtype == "F32" else struct.pack("<d", *struct.unpack("<f", rounded))


def read(data):
    """The tensors of a file: {name: (dtype, shape, bytes)}."""
    table, buffer = split(data)
    metadata = table.pop("__metadata__")
    raw = {name: buffer[slice(*row["data_offsets"])] for name, row in table.items()}
    found = {}
    for key, text in metadata.items():
        kind, _, name = key.partition(":")
        if kind == "tensor":
            row = dict(word.split("=") for word in text.split(" "))
            if "shape" not in row:
                found[name] = (table[name]["dtype"], tuple(table[name]["shape"]), raw[name])
            else:
                found[name] = _coded(name, row, table, raw)
    for key, name in metadata.items():
        if key.startswith("alias:"):
            found[key.removeprefix("alias:")] = found[name]
    return found


def _coded(name, row, table, raw):
    shape = tuple(int(one) for one in row["shape"].split(",") if one)
    size = 1 if "bits" in row else SIZES[row["dtype"]]
    values = unsorted(zlib.decompress(raw[f"{name}.values"]), size)
    at = places(zlib.decompress(raw[f"{name}.gaps"])) if "live" in row else range(prod(shape))
    assert len(values) == len(at) == int(row.get("live", prod(shape)))
    flat = [bytes(SIZES[row["dtype"]])] * prod(shape)
    if "bits" in row:
        stored, axis = raw[f"{name}.scale"], int(row["axis"])
        if table[f"{name}.scale"]["dtype"] == "U8":
            stored = b"".join(unsorted(zlib.decompress(stored), 4))
        scales = struct.unpack(f"<{shape[axis]}f", stored)
        indices = list(product(*map(range, shape)))
        codes = [struct.unpack("b", value)[0] for value in values]
        values = [product_of(c, scales[indices[i][axis]], row["dtype"]) for c, i in zip(codes, at, strict=True)]
    for i, value in zip(at, values, strict=True):
        flat[i] = value
    return row["dtype"], shape, b"".join(flat)
