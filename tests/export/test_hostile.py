"""A file that is not what was written is refused, says why, and nothing of it is loaded."""

import io
import os
import pickle
import random

import pytest
import torch
from export.drawn import Holder
from export.hostile import model, refused, written
from export.plain import rebuilt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.export.reader import reading


@pytest.fixture(scope="module", name="whole")
def _whole() -> bytes:
    return written()


def test_it_loads_as_long_as_nothing_was_done_to_it(whole, tmp_path):
    (tmp_path / "net").write_bytes(rebuilt(whole, lambda parts, rows: None))  # the tools of this file do no harm
    found = load_packed(tmp_path / "net", model(1))
    assert found[2].weight.equal(model()[2].weight)


def test_any_byte_that_changes_anywhere_is_found(whole, tmp_path_factory):
    file = tmp_path_factory.mktemp("flipped") / "net"

    @settings(deadline=None, max_examples=150)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    @example(0, 0x80)
    @example(7, 1)
    @example(40, 0x20)  # a digit of the sum
    @example(len(whole) - 1, 1)
    def check(place, change):
        refused(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :], file)

    check()


def test_every_byte_of_a_small_file_counts(tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"w": torch.eye(40), "b": torch.ones(3)}), file)
    data = file.read_bytes()
    for place, byte in enumerate(data):
        file.write_bytes(data[:place] + bytes([byte ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(ValueError, match="cannot load"):
            load_packed(file)


def test_a_file_that_is_cut_short_or_has_more_is_found(whole, tmp_path):
    dice = random.Random(0)
    for size in [0, 1, 7, 8, 9, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(60))]:
        refused(whole[:size], tmp_path / "net")
    refused(whole + b"\0", tmp_path / "net")


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        ((2**63).to_bytes(8, "little"), r"a header of 9,223,372,036,854,775,808 bytes does not fit into a file of"),
        (bytes(8), "its header is not JSON"),
        (b"\x1f\x8b" + b"\xff" * 6, "it is a gzip file: unpack it first"),
    ],
)
def test_a_length_of_the_header_that_cannot_be_is_refused(begin, words, whole, tmp_path):
    assert words in refused(begin + whole[8:], tmp_path / "net")


@pytest.mark.parametrize("way", ["read", "read_into"])
def test_a_file_that_shrinks_while_it_is_read_is_found(way, tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"w": torch.randint(0, 256, (100_000,), dtype=torch.uint8)}), file)
    with reading(file) as reader:
        entry = reader.entries["w"]
        os.truncate(file, entry.end - 1)
        room = () if way == "read" else (memoryview(bytearray(entry.size)),)
        with pytest.raises(ValueError, match="it is cut short"):
            getattr(reader, way)(entry, *room)


def test_a_long_header_is_not_even_read(tmp_path):
    file = tmp_path / "net"
    with file.open("wb") as out:
        out.write((10**8 + 1).to_bytes(8, "little"))
        out.truncate(2 * 10**8)  # a hole: takes no space
    with pytest.raises(ValueError, match="a header of 100,000,001 bytes is absurd; safetensors allows 100,000,000"):
        load_packed(file)


def test_files_of_torch_and_pickles_are_called_by_their_names(tmp_path):
    net = model()
    torch.save(net.state_dict(), tmp_path / "net")
    data = (tmp_path / "net").read_bytes()
    assert "it is a torch.save file or another zip: load it with torch.load" in refused(data, tmp_path / "net")
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream, _use_new_zipfile_serialization=False)
    assert "it is a pickle" in refused(stream.getvalue(), tmp_path / "net")
    assert "it is a pickle" in refused(pickle.dumps({"a": [1] * 100}), tmp_path / "net")


class Bomb:
    """Unpickles into a call."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_of_a_pickle_runs(tmp_path):
    refused(pickle.dumps(Bomb()), tmp_path / "net")
    assert not (tmp_path / "exploded").exists()


def test_a_safetensors_file_of_somebody_else_is_sent_to_its_library(tmp_path):
    from safetensors.torch import save

    for metadata in (None, {"format": "pt"}):
        text = refused(save({"w": torch.ones(3)}, metadata), tmp_path / "net")
        assert "load it with the safetensors library" in text


def test_folders_pipes_devices_and_nothing_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
        with pytest.raises(ValueError, match=f"cannot load {path}: it is a folder, a device or a pipe"):
            load_packed(path)
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "nothing")


def test_a_link_to_a_file_is_that_file(whole, tmp_path):
    (tmp_path / "net").write_bytes(whole)
    (tmp_path / "link").symlink_to("net")
    assert load_packed(tmp_path / "link").keys() == model().state_dict().keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"__metadata__":{"checksum":"00000000"', "is not JSON"),
        (b"[1, 2, 3]", "its header is a list, not a table of tensors"),
        (b'{"a":1,"a":2}', "a name occurs twice"),
        (b'{"a":NaN}', "NaN is no number"),
        (b'{"a":\xff\xfe}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' + b"1" * 5000 + b"}", "is not JSON"),
        (b'{"__metadata__":{"checksum":5}}', "its metadata has no text under 'checksum'"),
        (b'{"__metadata__":[]}', "it has no metadata of ours"),
    ],
)
def test_a_header_that_is_no_header_is_refused(text, words, tmp_path):
    assert words in refused(len(text).to_bytes(8, "little") + text, tmp_path / "net")
