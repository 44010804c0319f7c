"""A file of a few weights, byte for byte as it is worked out by hand, and the pieces that it is made of."""

import json
import zlib

import pytest
import torch
from export.plain import split
from torch import nn

from lightning_sparse.core.masks import positions_bits
from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.export.entropy import counted_bits
from lightning_sparse.export.gaps import from_gaps, to_gaps
from lightning_sparse.export.streams import Inflater, ValueReader, ValueWriter
from lightning_sparse.quant.grid import Codes


@pytest.mark.parametrize(
    ("positions", "start", "symbols"),
    [
        ([0], 0, [0]),
        ([3], 0, [3]),
        ([3, 4, 9], 0, [3, 0, 4]),
        ([254], 0, [254]),  # the widest gap of one byte
        ([255], 0, [255, 0]),  # 255 zeros were skipped, and none follows
        ([509], 0, [255, 254]),
        ([510, 511], 0, [255, 255, 0, 0]),
        ([1000], 700, [255, 45]),  # 300 zeros since the part before
        ([], 7, []),
    ],
)
def test_gaps_are_zeros_before_a_live_weight_and_255_skips(positions, start, symbols):
    assert to_gaps(torch.tensor(positions, dtype=torch.int64), start).tolist() == symbols
    if symbols:
        found, end = from_gaps(torch.tensor(symbols, dtype=torch.uint8), start)
        assert (found.tolist(), end) == (positions, positions[-1] + 1)


def test_skips_may_be_cut_from_the_weight_behind_them():
    found, end = from_gaps(torch.tensor([4, 255, 255], dtype=torch.uint8))
    assert (found.tolist(), end) == ([4], 515)
    assert from_gaps(torch.tensor([1], dtype=torch.uint8), end)[0].tolist() == [516]


def test_the_bytes_of_values_are_sorted_by_their_place_in_blocks():
    values = ValueWriter(2)
    values.write(torch.arange(65537, dtype=torch.int32).to(torch.int16))
    raw = zlib.decompress(values.finish())
    low, high, last = raw[:65536], raw[65536:131072], raw[131072:]
    assert low == bytes(range(256)) * 256
    assert high == b"".join(bytes([i]) * 256 for i in range(256))
    assert last == b"\0\0"  # 65,536 does not fit into 16 bits


def test_it_is_the_same_stream_in_one_piece_and_in_many():
    values, whole, pieces = torch.randn(200_001), ValueWriter(4), ValueWriter(4)
    whole.write(values)
    for piece in torch.split(values, 7001):
        pieces.write(piece)
    data = whole.finish()
    assert data == pieces.finish()
    reader = ValueReader(data, "w", torch.float32, 200_001)
    assert torch.cat([reader.take(count) for count in (1, 65535, 1, 134_464)]).equal(values)
    reader.close()


def test_a_bomb_is_never_more_than_asked_for():
    bomb = zlib.compress(bytes(10_000_000))
    stream = Inflater(bomb, "w.gaps")
    assert [len(stream.read(1000)), len(stream.read(5))] == [1000, 5]
    with pytest.raises(ValueError, match=r"w.gaps goes on after its last value"):
        stream.close()


def test_entropies_are_those_of_the_textbook():
    assert positions_bits(8, 2) == pytest.approx(8 * (0.25 * 2 + 0.75 * 0.41503749927884376))
    assert positions_bits(5, 5) == 0.0
    assert counted_bits(torch.tensor([1, 1, 2])) == 6.0  # 1, 1 and 2 times 2, 2 and 1 bits
    assert counted_bits(torch.tensor([9, 0])) == 0.0


class Tiny(nn.Module):
    """One sparse weight that has codes, one sparse weight of floats, and a bias, twice under two names."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 400))
        self.w.data[0, 3], self.w.data[1, 1] = 0.5, -1.0
        self.v = nn.Parameter(torch.zeros(600))
        self.v.data[599] = -0.0
        self.b = nn.Parameter(torch.tensor([1.5, -2.0]))
        self.c = self.b


def test_a_file_is_what_the_page_says_byte_by_byte(tmp_path):
    codes = torch.zeros(2, 400, dtype=torch.int8)
    codes[0, 3], codes[1, 1] = 2, -3
    report = save_packed(Tiny(), tmp_path / "tiny", {"w": Codes(codes, torch.tensor([0.25, 0.5]), 0, 4)})
    data = (tmp_path / "tiny").read_bytes()
    table, buffer = split(data)
    assert len(data) % 8 == len(buffer) % 8
    assert buffer[:16].hex() == "0000803e0000003f0000c03f000000c0"  # 0.25, 0.5; 1.5, -2.0: four bytes each come first
    streams = {}
    for name in ("w.gaps", "w.values", "v.gaps", "v.values"):
        begin, end = table[name]["data_offsets"]
        assert table[name]["dtype"] == "U8"
        assert table[name]["shape"] == [end - begin]
        streams[name] = buffer[begin:end]
    assert zlib.decompress(streams["w.gaps"]) == bytes([3, 255, 142])  # 3 zeros; 396 of the first row and 1, less 255
    assert zlib.decompress(streams["w.values"]) == bytes([2, 256 - 3])
    assert zlib.decompress(streams["v.gaps"]) == bytes([255, 255, 89])
    assert zlib.decompress(streams["v.values"]) == bytes([0, 0, 0, 0x80])
    w = zlib.crc32(streams["w.gaps"] + streams["w.values"] + buffer[:8])
    v = zlib.crc32(streams["v.gaps"] + streams["v.values"])
    metadata = table["__metadata__"]
    assert metadata == {
        "checksum": metadata["checksum"],
        "format": "lightning_sparse.packed",
        "version": "1",
        "codec": "gaps,zlib",
        "tensor:w": f"dtype=F32 shape=2,400 live=2 bits=4 axis=0 crc32={w:08x}",
        "tensor:v": f"dtype=F32 shape=600 live=1 crc32={v:08x}",
        "tensor:b": f"crc32={zlib.crc32(buffer[8:16]):08x}",
        "alias:c": "b",
    }
    head = data[: len(data) - len(buffer)]
    assert head[8:37] == b'{"__metadata__":{"checksum":"'
    assert zlib.crc32(head[:37] + b"00000000" + head[45:]) == int(head[37:45], 16)
    assert json.loads(head[8:])["w.scale"] == {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert report.bytes == len(data)
    assert report.dense_bytes == 4 * (800 + 600 + 2)


def test_a_file_that_another_language_wrote_is_read(tmp_path):
    """Not ours: other streams (stored, not Huffman), other order of names, no padding."""
    gaps, values = zlib.compress(bytes([1, 255, 0]), 0), zlib.compress(bytes([5, 251]), 0)
    scale = bytes.fromhex("0000003f" "00000040" "00000041")  # 0.5, 2, 8
    total = zlib.crc32(gaps + values + scale)
    buffer, table, at = scale + values + gaps, {}, 0
    row = f"dtype=F64 shape=100,3 live=2 bits=4 axis=1 crc32={total:08x}"
    head = {"format": "lightning_sparse.packed", "version": "1", "codec": "gaps,zlib", "tensor:w": row}
    for name, kind, part in (("w.scale", "F32", scale), ("w.values", "U8", values), ("w.gaps", "U8", gaps)):
        size = len(part) // (4 if kind == "F32" else 1)
        table[name] = {"dtype": kind, "shape": [size], "data_offsets": [at, at + len(part)]}
        at += len(part)
    text = json.dumps({"__metadata__": {"checksum": "00000000", **head}, **table}, separators=(",", ":")).encode()
    full = len(text).to_bytes(8, "little") + text
    digits = f"{zlib.crc32(full):08x}".encode()
    (tmp_path / "other").write_bytes(full[:37] + digits + full[45:] + buffer)
    found = load_packed(tmp_path / "other")["w"]
    expected = torch.zeros(100, 3, dtype=torch.float64)
    expected[0, 1] = 5 * 2.0  # place 1
    expected[85, 2] = -5 * 8.0  # place 2 + 255 = 257 = 85 * 3 + 2
    assert found.equal(expected)
