"""A checkpoint that is not what was written never loads silently: its file is named, or what differs."""

import copy
import io
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import DENSITY, loader, net, same, saver, stateful, trainer, weights
from torch import Tensor

from lightning_sparse import GlobalMagnitude, MaskUpdater, SparseMomentum, Sparsifier
from lightning_sparse.callbacks.torn import damage
from lightning_sparse.core.masks import pack_bits, unpack_bits

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


def leaves(value: object, at: tuple = ()) -> dict[tuple, object]:
    """Every leaf of nested containers by its path."""
    if isinstance(value, dict | list | tuple):
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in rows for path, leaf in leaves(part, (*at, key)).items()}
    return {at: value}


def equal(left: object, right: object) -> bool:
    a, b = leaves(left), leaves(right)
    return a.keys() == b.keys() and all(
        torch.equal(x, b[key]) if isinstance(x, Tensor) else x == b[key] for key, x in a.items()
    )


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


# In a loop without Lightning nobody looks at the file: the engine's state tells by itself. ---------------------------


def engine(algorithm=MOMENTUM, seed: int = 2) -> tuple[torch.nn.Module, Sparsifier]:
    """After four steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, algorithm, DENSITY, optimizers=[optimizer], total_steps=20)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
    return model, sparsifier


def refused(state: dict, algorithm=MOMENTUM) -> str:
    """What is said to this state; the engine and the weights are as before, to the bit."""
    model, sparsifier = engine(algorithm)
    before, held = weights(model), copy.deepcopy(sparsifier.state_dict())
    with pytest.raises(ValueError) as error:
        sparsifier.load_state_dict(state)
    assert same(weights(model), before)
    assert equal(sparsifier.state_dict(), held)
    return str(error.value)


def set_at(state: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


def changed(leaf: object) -> object:
    """The least that can change in it."""
    if isinstance(leaf, Tensor):
        return torch.from_numpy(leaf.numpy().copy().view("uint8") ^ 1).view(leaf.dtype).view(leaf.shape)
    return leaf + "x" if isinstance(leaf, str) else not leaf if isinstance(leaf, bool) else leaf + 1


@pytest.mark.filterwarnings("ignore:the masks were trained by")
def test_no_part_of_an_engines_state_can_change_unnoticed():
    model, sparsifier = engine()
    good, before = copy.deepcopy(sparsifier.state_dict()), weights(model)
    paths = [path for path in leaves(good) if path[0] != "rewinder"]
    assert len(paths) == 4 + 2 * (2 + 6)  # of each layer: two sizes, five entries, and its momentum
    for path in paths:
        state = copy.deepcopy(good)
        set_at(state, path, changed(leaves(state)[path]))
        with pytest.raises(ValueError, match=r"torn|do not fit|cannot read|was on its way"):
            sparsifier.load_state_dict(state)
        assert equal(sparsifier.state_dict(), good), path
        assert same(weights(model), before), path
    sparsifier.load_state_dict(good)


def test_two_flipped_bits_that_keep_a_masks_count_are_refused():
    state = copy.deepcopy(engine()[1].state_dict())
    row = state["params"]["0.weight"]
    mask = unpack_bits(row["mask"], row["shape"])
    live, dead = (tuple(where[0].tolist()) for where in (mask.nonzero(), (~mask).nonzero()))
    mask[live], mask[dead] = False, True
    row["mask"] = pack_bits(mask)
    assert "numbers or tensors changed since they were saved" in refused(state)


def test_everything_that_is_wrong_is_said_at_once():
    state = copy.deepcopy(engine()[1].state_dict())
    rows = state["params"]
    del rows["0.weight"]["live"], state["updates"]
    rows["0.weight"]["mask"] = [1, 2]
    rows["2.weight"]["steps"] = "4"
    rows["2.weight"]["state"]["momentum"] = 3.0
    said = refused(state)
    for part in (
        "5 problems",
        "the state has no updates",
        "0.weight has no live",
        "0.weight: mask is a list, not a Tensor",
        "2.weight: steps is a str, not a int",
        "2.weight.state: momentum is a float, not a Tensor",
    ):
        assert part in said
    counts = copy.deepcopy(engine()[1].state_dict())
    for row in counts["params"].values():
        row["live"] += 1
    assert "2 problems" in (said := refused(counts))
    assert "0.weight: the mask has" in said
    assert "2.weight: the mask has" in said


def test_a_state_without_the_weights_to_rewind_to_is_refused_before_anything_changes():
    ticket = GlobalMagnitude(rounds=2, stop=8, rewind=2)
    state = copy.deepcopy(engine(ticket, seed=5)[1].state_dict())  # with other masks
    assert state["rewinder"]["saved"]
    state["rewinder"]["saved"] = {}
    assert "whose weights this checkpoint does not hold" in refused(state, ticket)
