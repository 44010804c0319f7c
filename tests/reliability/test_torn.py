"""A checkpoint that is not what was written never loads silently: its file is named, or what differs."""

import io
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from contents import equal
from helpers import DENSITY, loader, net, same, saver, stateful, trainer, weights
from torch import Tensor

from lightning_sparse import MaskUpdater, SparseMomentum
from lightning_sparse.callbacks.torn import damage

MOMENTUM = SparseMomentum(every=2)
MASKS = "lightning_sparse.MaskUpdater"
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint here


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A checkpoint after six steps of AdamW, with masks, their momentum, optimizer state and random states."""
    folder = tmp_path_factory.mktemp("whole")
    keep = saver(folder, 6)
    trainer([MaskUpdater(MOMENTUM, DENSITY), keep], max_steps=6, enable_checkpointing=True).fit(net("adamw"), loader())
    return (folder / "step=6.ckpt").read_bytes()


def read(data: bytes) -> dict:
    return torch.load(io.BytesIO(data), weights_only=True)


def flip(data: bytes, byte: int, bit: int = 0) -> bytes:
    return data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :]


def place(data: bytes, tensor: Tensor) -> int:
    """Where a tensor's bytes are in a file."""
    found = data.find(tensor.contiguous().numpy().tobytes())
    assert found > 0
    return found


def attempt(data: bytes, file: Path, method: str = "fit"):
    """Go on from these bytes: the callback, the model, its first weights, the Trainer, and what was said."""
    file.write_bytes(data)
    model, updater = net("adamw", seed=9), MaskUpdater(MOMENTUM, DENSITY)
    first, fit = weights(model), trainer([updater], max_steps=8)
    with pytest.raises(Exception) as error:
        getattr(fit, method)(model, loader(), ckpt_path=file)
    said = "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])
    return updater, model, first, fit, said


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.3, 0.9999])
def test_a_file_that_is_cut_short_is_named_and_nothing_is_touched(share, whole, tmp_path):
    file = tmp_path / "torn.ckpt"
    updater, model, first, fit, said = attempt(whole[: int(len(whole) * share)], file)
    why = "it is cut short" if share else "it is empty"
    assert f"the checkpoint {file} is torn ({why}): go on from another one" in said
    assert same(weights(model), first)
    assert (fit.global_step, updater.masks) == (0, {})


def test_a_file_is_found_to_be_cut_short_wherever_it_is_cut(whole, tmp_path):
    file, dice = tmp_path / "torn.ckpt", random.Random(0)
    for size in [1, 2, 3, 4, 5, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(100))]:
        file.write_bytes(whole[:size])
        assert damage(file) == "it is cut short", size
    file.write_bytes(bytes(1000))  # space was reserved, and never written
    assert damage(file) == "it is empty"


def test_a_bit_that_flips_anywhere_is_found_or_changes_nothing(whole, tmp_path):
    file, dice, written, ends = tmp_path / "torn.ckpt", random.Random(1), read(whole), Counter()
    for _ in range(100):
        spoiled = flip(whole, dice.randrange(len(whole)), dice.randrange(8))
        file.write_bytes(spoiled)
        if damage(file):
            ends["found"] += 1
            continue
        try:
            found = read(spoiled)
        except Exception:  # torch is stricter with headers, and says so by itself
            ends["refused by torch"] += 1
        else:
            ends["harmless"] += 1  # padding
            assert equal(found, written)
    assert ends["found"] > 70
    assert ends["refused by torch"] < 5


PARTS = {
    "masks": lambda found: found["callbacks"][MASKS]["params"]["net.4.weight"]["mask"],
    "momentum": lambda found: found["callbacks"][MASKS]["params"]["net.4.weight"]["state"]["momentum"],
    "random state": lambda found: found["callbacks"][MASKS]["rng"][0]["torch"],
    "weights": lambda found: found["state_dict"]["net.4.weight"],
    "optimizer": lambda found: found["optimizer_states"][0]["state"][2]["exp_avg"],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_refused_although_torch_loads_it(part, whole, tmp_path):
    tensor = PARTS[part](read(whole))
    spoiled = flip(whole, place(whole, tensor) + tensor.nbytes // 2, 3)
    assert not equal(read(spoiled), read(whole)), "torch itself refuses it by now"
    updater, _, _, fit, said = attempt(spoiled, tmp_path / "torn.ckpt")
    assert f"the checkpoint {tmp_path / 'torn.ckpt'} is torn" in said
    assert "changed since it was written" in said
    assert (fit.global_step, updater.sparsifier) == (0, None)


@pytest.mark.parametrize("method", ["validate", "test"])
def test_a_flipped_bit_is_refused_without_a_fit_too(method, whole, tmp_path):
    spoiled = flip(whole, place(whole, PARTS["weights"](read(whole))) + 40)
    *_, said = attempt(spoiled, tmp_path / "torn.ckpt", method)
    assert "torn.ckpt is torn" in said


def test_a_flipped_bit_in_the_name_of_the_callbacks_states_is_refused(whole, tmp_path):
    spoiled = flip(whole, whole.index(b"callbacks") + 3)
    assert "callbacks" not in read(spoiled)  # Lightning then takes it for one without callbacks
    updater, _, _, fit, said = attempt(spoiled, tmp_path / "torn.ckpt")
    assert "torn.ckpt is torn" in said
    assert (fit.global_step, updater.sparsifier) == (6, None)


def test_an_error_that_the_file_is_not_to_blame_for_keeps_its_words(whole, tmp_path):
    file = tmp_path / "whole.ckpt"
    file.write_bytes(whole)
    fit = trainer([MaskUpdater(MOMENTUM, 0.5)], max_steps=8)
    with pytest.raises(ValueError, match="do not fit this model") as error:
        fit.fit(net("adamw"), loader(), ckpt_path=file)
    assert not hasattr(error.value, "__notes__")


def test_what_cannot_be_judged_is_left_to_lightning(tmp_path):
    file = tmp_path / "other.ckpt"
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    assert damage(file) == ""
    assert damage(tmp_path) == ""
    assert damage("memory://run/step.ckpt") == ""


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always stores sums")
def test_files_saved_without_sums_load(whole, tmp_path):
    file = tmp_path / "fast.ckpt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(read(whole), file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert damage(file) == ""
    fit = trainer([MaskUpdater(MOMENTUM, DENSITY)], max_steps=8)
    fit.fit(net("adamw"), stateful(), ckpt_path=file)
    assert fit.global_step == 8
