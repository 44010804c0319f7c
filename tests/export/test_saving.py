"""What cannot be saved is refused by name, all at once; and a file is there whole, or as it was."""

import os
import stat
import sys

import pytest
import torch
from export.drawn import Holder
from torch import nn

from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.quant.grid import Codes, quantize


class Counter(nn.Module):
    """Keeps a number in the state, which is no tensor."""

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


class Own(torch.Tensor):
    """A tensor of another kind."""


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_everything_that_is_no_plain_tensor_is_named(tmp_path):
    module = nn.Module()
    module.counter, module.lazy = Counter(), nn.LazyLinear(3)
    module.own = nn.Parameter(torch.ones(2).as_subclass(Own), requires_grad=False)
    tensors = {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "wave": torch.ones(2, dtype=torch.complex64),
    }
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    with pytest.raises(ValueError, match=f"cannot save {tmp_path / 'net'}: 8 problems") as error:
        save_packed(module, tmp_path / "net")
    text = str(error.value)
    for words in (
        "counter._extra_state is a dict, not a tensor",
        "lazy.weight is lazy and has no shape yet: run one batch through the model first",
        "lazy.bias is lazy",
        "own is a Own, a tensor of its own kind",
        "sparse has the layout sparse_coo",
        "csr has the layout sparse_csr",
        "meta is on the meta device and has no values",
        "wave is complex64, which the format has no name for",
    ):
        assert words in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_a_tensor_of_a_quantized_type_is_refused(tmp_path):
    module = Holder({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)})
    with pytest.raises(ValueError, match="w is qint8, which the format has no name for"):
        save_packed(module, tmp_path / "net")


def test_a_name_that_the_format_needs_is_refused(tmp_path):
    module = nn.Module()
    module.state_dict = lambda: {"w": torch.eye(100), "w.gaps": torch.ones(3), "__metadata__": torch.ones(1)}
    with pytest.raises(ValueError, match=r"a name that the format needs for itself \(__metadata__\)"):
        save_packed(module, tmp_path / "net")
    module.state_dict = lambda: {"w": torch.eye(100), "w.gaps": torch.ones(3)}
    with pytest.raises(ValueError, match=r"w.gaps is the name of a tensor and of a part of another"):
        save_packed(module, tmp_path / "net")


def test_two_names_of_a_compiled_model_do_not_become_one(tmp_path):
    module = nn.Module()
    module.state_dict = lambda: {"w": torch.eye(2), "_orig_mod.w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"_orig_mod.w and w are both w in a plain model"):
        save_packed(module, tmp_path / "net")


def test_a_machine_of_another_byte_order_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ValueError, match="this machine stores numbers with the highest byte first"):
        save_packed(Holder({"w": WEIGHT}), tmp_path / "net")


def test_what_is_not_a_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"module must be a torch.nn.Module, got dict"):
        save_packed({"w": torch.ones(2)}, tmp_path / "net")
    save_packed(Holder({"w": torch.ones(2)}), tmp_path / "net")
    with pytest.raises(ValueError, match=r"module must be a torch.nn.Module, got dict"):
        load_packed(tmp_path / "net", {"w": torch.ones(2)})


WEIGHT = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.5, 0.0]])
GOOD = quantize(WEIGHT, 8)
CODES = {
    "must be Codes, got Tensor": WEIGHT,
    "have shape [3, 2], the weight [2, 3]": Codes(GOOD.codes.t(), torch.ones(3), 0, 8),
    "must be int8 with scales of float32, got int32 with float32": Codes(GOOD.codes.int(), GOOD.scale, 0, 8),
    "must be int8 with scales of float32, got int8 with float64": Codes(GOOD.codes, GOOD.scale.double(), 0, 8),
    "must have 2 to 8 bits, got 9": Codes(GOOD.codes, GOOD.scale, 0, 9),
    "have scales of shape [2] for dimension 1 of [2, 3]": Codes(GOOD.codes, GOOD.scale, 1, 8),
    "have scales of shape [2] for dimension 2 of [2, 3]": Codes(GOOD.codes, GOOD.scale, 2, 8),
    "have a scale that is not positive and finite": Codes(GOOD.codes, torch.tensor([1.0, float("nan")]), 0, 8),
    "reach from -127 to 127, too far for 4 bits": Codes(GOOD.codes, GOOD.scale, 0, 4),
    "are of another state: 2 are not zero where the weight is": quantize(WEIGHT + torch.eye(3)[1:], 8),
}


@pytest.mark.parametrize("words", CODES)
def test_codes_that_cannot_be_of_the_weight_are_refused(words, tmp_path):
    with pytest.raises(ValueError) as error:
        save_packed(Holder({"w": WEIGHT}), tmp_path / "net", {"w": CODES[words]})
    assert f"codes['w'] {words}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_codes_of_nothing_and_of_integers_are_refused_together(tmp_path):
    with pytest.raises(ValueError, match="2 problems") as error:
        save_packed(Holder({"n": torch.ones(2, 3).long()}), tmp_path / "net", {"n": GOOD, "x": GOOD})
    assert "codes['n'] are of a tensor of int64" in str(error.value)
    assert "codes['x'] are of no tensor of the module" in str(error.value)
    with pytest.raises(ValueError, match="codes must be a mapping of names to Codes, got list"):
        save_packed(Holder({"w": WEIGHT}), tmp_path / "net", [GOOD])


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, words in (("folder", "it is a folder"), ("link", "it is a link"), ("no/net", "there is no folder")):
        with pytest.raises(ValueError, match=words):
            save_packed(Holder({"w": WEIGHT}), tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "link"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_when_writing_fails_the_old_file_stays_and_nothing_else(broken, tmp_path, monkeypatch):
    file = tmp_path / "net"
    save_packed(Holder({"w": WEIGHT}), file)
    before = file.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fails)
    with pytest.raises(OSError, match="No space left"):
        save_packed(Holder({"w": torch.ones(1000)}), file)
    assert [one.name for one in tmp_path.iterdir()] == ["net"]
    assert file.read_bytes() == before


def test_a_new_file_takes_the_place_of_the_old_one_and_has_the_usual_rights(tmp_path):
    file, usual = tmp_path / "net", tmp_path / "usual"
    usual.write_bytes(b"")
    file.write_bytes(b"something else")
    save_packed(Holder({"w": WEIGHT}), file)
    assert load_packed(str(file))["w"].equal(WEIGHT)
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
