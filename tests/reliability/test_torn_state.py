"""In a loop without Lightning nobody looks at the file: the engine's state tells by itself that it is torn."""

import copy

import pytest
import torch
from contents import equal, leaves
from helpers import DENSITY, same, weights
from torch import Tensor

from lightning_sparse import DSR, L0, STR, GlobalMagnitude, GraNet, SparseMomentum, Sparsifier, TopKAST
from lightning_sparse.core.checksum import checksum
from lightning_sparse.core.masks import pack_bits, unpack_bits

MOMENTUM = SparseMomentum(every=2)


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
    paths = [path for path in leaves(good) if path != ("rewinder", "step")]  # None: a rewinder's are below
    assert len(paths) == 5 + 2 * (2 + 6)  # of each layer: two sizes, five entries, and its momentum
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
    state = copy.deepcopy(engine(GlobalMagnitude(rounds=2, stop=8), seed=5)[1].state_dict())  # with other masks
    assert not state["rewinder"]["saved"]
    assert "whose weights this checkpoint does not hold" in refused(state, ticket)


def test_no_part_of_the_weights_to_rewind_to_can_change_unnoticed():
    ticket = GlobalMagnitude(rounds=2, stop=8, rewind=2)
    good = copy.deepcopy(engine(ticket, seed=5)[1].state_dict())
    paths = [path for path in leaves(good) if path[0] == "rewinder"]
    assert sum(isinstance(leaves(good)[path], Tensor) for path in paths) >= 4  # two layers of weights and biases
    for path in paths:
        state = copy.deepcopy(good)
        set_at(state, path, changed(leaves(state)[path]))
        assert "changed since they were saved" in refused(state, ticket), path
    del (state := copy.deepcopy(good))["rewinder"]
    assert "changed since they were saved" in refused(state, ticket)


OWN = {
    "momentum": SparseMomentum(every=2, stop=1.0),
    "start": GraNet(every=2, stop=1.0),
    "threshold": DSR(every=2, stop=1.0),
    "velocity": STR(every=2, stop=1.0),
    "log_alpha": L0(every=2, begin=0, stop=1.0),
    "backward": TopKAST(every=2, stop=1.0),
}


def summed(state: dict) -> dict:
    """With the sum that belongs to it: whoever made it, nothing is torn."""
    return {**state, "checksum": checksum({key: value for key, value in state.items() if key != "checksum"})}


@pytest.mark.parametrize("key", OWN)
def test_a_whole_state_of_other_keys_or_shapes_is_refused_by_name(key):
    good = copy.deepcopy(engine(OWN[key])[1].state_dict())
    assert summed(good)["checksum"] == good["checksum"]
    named, shaped = copy.deepcopy(good), copy.deepcopy(good)
    rows = named["params"]
    rows["0.weight"]["state"]["other"] = rows["0.weight"]["state"].pop(key)
    assert f"0.weight: {type(OWN[key]).__name__} keeps its {key}" in refused(summed(named), OWN[key])
    shaped["params"]["2.weight"]["state"][key] = torch.zeros(3, 2)
    assert f"2.weight: its {key} has shape [3, 2] there" in refused(summed(shaped), OWN[key])


def test_gates_of_units_are_not_gates_of_weights():
    by_unit, by_weight = (L0(every=2, begin=0, stop=1.0, gates=gates) for gates in ("unit", "weight"))
    state = copy.deepcopy(engine(by_unit)[1].state_dict())
    assert "0.weight: its log_alpha has shape" in refused(state, by_weight)
