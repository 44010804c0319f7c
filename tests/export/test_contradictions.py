"""A file whose sums are right and whose words are not: each contradiction is refused by name, and nothing is loaded."""

import tracemalloc
import zlib

import pytest
import torch
from export.drawn import Holder
from export.hostile import refused, written
from export.plain import join, rebuilt, split

from lightning_sparse.export import load_packed, save_packed


@pytest.fixture(scope="module", name="whole")
def _whole() -> bytes:
    return written()


def change_table(whole, name, **row):
    table, buffer = split(whole)
    table[name].update(row)
    return join(table, buffer)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"dtype": "F31"}, "b has the unknown type 'F31'"),
        ({"dtype": ["F32"]}, "b has the unknown type ['F32']"),
        ({"shape": [-40]}, "are not numbers from 0 up"),
        ({"shape": [40.0]}, "are not numbers from 0 up"),
        ({"shape": [True] * 40}, "are not numbers from 0 up"),
        ({"shape": [1] * 65}, "are not numbers from 0 up"),
        ({"shape": [2**40, 2**40]}, "are not numbers from 0 up"),
        ({"shape": [0, 2**62]}, "are not numbers from 0 up"),
        ({"shape": 40}, "are not numbers from 0 up"),
        ({"shape": [41]}, "b of shape [41] and type F32 does not take"),
        ({"data_offsets": [0]}, "are not numbers from 0 up"),
        ({"data_offsets": [-8, 8]}, "are not numbers from 0 up"),
        ({"data_offsets": [10**12, 10**12 + 160]}, "the tensor before ends at"),
        ({"data_offsets": [160, 0]}, "does not take -160 bytes"),
        ({"extra": 1}, "b has not exactly dtype, shape and data_offsets"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row, words, tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"b": torch.arange(40.0)}), file)
    data = rebuilt(file.read_bytes(), lambda parts, rows: parts.update(b=["F32", [40], bytes(160)]))
    assert words in refused(change_table(data, "b", **row), file)


def test_tensors_that_overlap_or_leave_holes_are_refused(tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"a": torch.arange(3.0), "b": torch.arange(3.0)}), file)
    data = file.read_bytes()
    for name, places, says in (("b", [8, 20], (8, 12)), ("b", [0, 12], (0, 12)), ("a", [4, 16], (4, 0))):
        changed = change_table(data, name, data_offsets=places)
        begin, end = (len(changed) - 24 + place for place in says)
        assert f"begins at byte {begin}, the tensor before ends at {end}" in refused(changed, file)
    assert f"its tensors end at byte {len(data)} of {len(data) + 1}" in refused(data + b"\0", file)


def deflated(raw):
    return ["U8", [len(zlib.compress(raw))], zlib.compress(raw)]


def put(name, part):
    """Another part in place of one."""
    return lambda parts, rows: parts.update({name: part})


def say(name, old, new):
    """Other words in a row of the metadata."""

    def change(parts, rows):
        assert old in rows[f"tensor:{name}"]
        rows[f"tensor:{name}"] = rows[f"tensor:{name}"].replace(old, new)

    return change


def meta(key, text):
    return lambda parts, rows: rows.update({key: text})


def drop(name):
    return lambda parts, rows: parts.pop(name)


def longer(name):
    return lambda parts, rows: parts.update({name: ["U8", [len(parts[name][2]) + 1], parts[name][2] + b"x"]})


def one_past_the_end(parts, rows):
    """The last weight of 0.weight is the 2,401st of 2,400."""
    live = int(rows[f"tensor:{W}"].partition("live=")[2].partition(" ")[0])
    rest = 2400 - (live - 1)
    parts[f"{W}.gaps"] = deflated(bytes(live - 1) + b"\xff" * (rest // 255) + bytes([rest % 255]))


W, V = "0.weight", "2.weight"  # codes of shape (40, 60); floats of shape (3, 40)
HOSTILE = {
    "another version": (meta("version", "2"), "it is of version '2' ('gaps,zlib'), this reads '1' ('gaps,zlib')"),
    "another codec": (meta("codec", "zstd"), "it is of version '1' ('zstd')"),
    "another format": (meta("format", "x"), "it was not written by save_packed"),
    "words in the metadata": (meta("note", "x"), "its metadata has an unknown 'note'"),
    "a row without meaning": (meta(f"tensor:{W}", "shape=crc32="), "which has no meaning"),
    "a row of digits": (meta(f"tensor:{W}", f"dtype=F32 shape={'1' * 60}x crc32=00000000"), "which has no meaning"),
    "an unknown type": (say(W, "dtype=F32", "dtype=F33"), "which has no meaning"),
    "a type without scales": (say(W, "dtype=F32", "dtype=I32"), "has no scales along 0"),
    "an axis too far": (say(W, "axis=0", "axis=2"), "has no scales along 2"),
    "a negative shape": (say(W, "shape=40,60", "shape=-40,60"), "which has no meaning"),
    "a shape that overflows": (say(W, "shape=40,60", f"shape={2**62},{2**62}"), "which has no meaning"),
    "more live than there are": (say(W, "shape=40,60", "shape=40,1"), "live weights of 40"),
    "other channels": (say(W, "shape=40,60", "shape=60,40"), f"{W}.scale ends before its values do"),
    "a row of nothing": (meta("tensor:x", "crc32=00000000"), "x is described by 'crc32=00000000', which has no"),
    "no values": (drop(f"{W}.values"), f"{W} has no {W}.values"),
    "no gaps": (drop(f"{W}.gaps"), f"{W} has no {W}.gaps"),
    "no scales": (drop(f"{W}.scale"), f"{W} has no {W}.scale"),
    "a stray tensor": (put("stray", ["U8", [1], b"x"]), "stray is no part of a tensor"),
    "streams of another type": (put(f"{W}.gaps", ["I8", [1], b"x"]), f"{W}.gaps has 1 bytes of I8"),
    "no stream at all": (put(f"{W}.gaps", ["U8", [300], b"x" * 300]), f"{W}.gaps cannot be decompressed"),
    "a stream too long for the shape": (put(f"{W}.gaps", ["U8", [3000], b"x" * 3000]), "which cannot hold"),
    "no gaps in the stream": (put(f"{W}.gaps", deflated(b"")), f"{W}.values has more values than there are gaps"),
    "too many gaps": (put(f"{W}.gaps", deflated(bytes(2400))), f"{W}.values has fewer values than there are gaps"),
    "gaps past the end": (put(f"{W}.gaps", deflated(b"\xfe" * 200)), f"{W}.gaps run past the end of a shape [40, 60]"),
    "a gap one past the end": (one_past_the_end, f"{W}.gaps run past the end"),
    "skips past the end": (put(f"{W}.gaps", deflated(b"\xff" * 300)), f"{W}.gaps run past the end"),
    "a bomb of values": (put(f"{W}.values", deflated(bytes(200_000))), f"{W}.values goes on after its last value"),
    "junk behind a stream": (longer(f"{W}.gaps"), f"{W}.gaps goes on after its last value"),
    "a short stream": (put(f"{W}.values", deflated(bytes(200))), f"{W}.values ends before its values do"),
    "a code too large": (say(W, "bits=8", "bits=7"), "too many for 7 bits"),
    "an alias of nothing": (meta("alias:x", "y"), "x is another name of y, which is no tensor"),
    "an alias of an alias": (meta(f"alias:{W}", V), f"{W} is another name of {V}"),
    "a scale that is no number": (put(f"{W}.scale", ["F32", [40], b"\0\0\xc0\x7f" * 40]), "not positive and finite"),
    "a scale of zero": (put(f"{W}.scale", ["F32", [40], bytes(160)]), "not positive and finite"),
    "an infinite scale": (put(f"{W}.scale", ["F32", [40], b"\0\0\x80\x7f" * 40]), "not positive and finite"),
    "scales that are too few": (put(f"{W}.scale", ["F32", [39], b"\0\0\x80\x3f" * 39]), f"{W}.scale has 156 bytes of"),
    "compressed scales, too few": (put(f"{W}.scale", deflated(bytes(156))), f"{W}.scale ends before its values do"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_whose_sums_are_right_and_whose_words_are_not_is_refused(what, whole, tmp_path):
    change, words = HOSTILE[what]
    assert words in refused(rebuilt(whole, change), tmp_path / "net")


def test_booleans_that_are_neither_are_refused(tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"m": torch.tensor([True, False, True])}), file)
    changed = rebuilt(file.read_bytes(), put("m", ["BOOL", [3], b"\1\2\0"]))
    assert "m has booleans that are neither 0 nor 1" in refused(changed, file)


@pytest.mark.parametrize(("end", "byte"), [("gaps", b"\xff"), ("gaps", b"\0"), ("values", b"\0")])
def test_a_bomb_takes_little_memory(end, byte, tmp_path):
    """Streams as long as they may be, which hold 40 MB in place of 50,000 bytes: a piece is unpacked, and no more."""
    file, weight = tmp_path / "net", torch.zeros(1000, 1000, dtype=torch.int8)
    weight.view(-1)[::20] = torch.randint(1, 127, (50_000,), dtype=torch.int8)
    save_packed(Holder({"w": weight}), file)
    bomb = deflated(byte * 40_000_000)
    assert 38_000 < len(bomb[2]) < 42_000
    file.write_bytes(rebuilt(file.read_bytes(), put(f"w.{end}", bomb)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"w\.(gaps run past|values (has fewer|goes on))"):
        load_packed(file)
    assert tracemalloc.get_traced_memory()[1] < 1_500_000
    tracemalloc.stop()
