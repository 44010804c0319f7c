"""State of live weights only: what masks do to it, and what saving, copying and loading keep."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_sparse import RigL, Sparsifier
from lightning_sparse.optim import MaskedAdam, MaskedAdamW, MaskedSGD, ProxSGD

KINDS = {
    "sgd": lambda w: MaskedSGD(w, lr=0.1, momentum=0.9),
    "adam": lambda w: MaskedAdam(w, lr=0.1, amsgrad=True),
    "adamw": lambda w: MaskedAdamW(w, lr=0.1),
}


def mask_of(text):
    """Rows of 1 and 0."""
    return torch.tensor([[c == "1" for c in row] for row in text.split()])


def stepped(kind, mask, steps=3, dtype=torch.float32):
    """A weight of ten by eight after some steps under a mask."""
    torch.manual_seed(3)
    weight = nn.Parameter(torch.randn(10, 8).mul(mask).to(dtype))
    optimizer = KINDS[kind]([weight])
    optimizer.set_mask(weight, mask)
    go(weight, optimizer, steps)
    return weight, optimizer


def go(weight, optimizer, steps, seed=9):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


def half(seed=1):
    return torch.rand(10, 8, generator=torch.Generator().manual_seed(seed)) < 0.5


def tensors(optimizer):
    return {name: value.clone() for row in optimizer.state.values() for name, value in row.items()}


def test_state_follows_its_weight_when_masks_move_by_hand():
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = MaskedSGD([weight], lr=1.0, momentum=0.5)
    optimizer.set_mask(weight, mask_of("101 010"))
    weight.grad = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1, 3, 5]
    optimizer.set_mask(weight, mask_of("011 110"))  # 0 goes; 1 and 3 come; 2 and 4 stay
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0, 3, 0, 5]
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    # momentum .5 * old + 1: 1, 2.5, 1, 3.5; weights were -1, 0, -3 and 0, -5, 0; the first is dead: it stays -1
    assert weight.tolist() == [[-1, -1, -5.5], [-1, -8.5, 0]]


def test_steps_are_counted_for_the_parameter_and_go_on_when_masks_move():
    weight, optimizer = stepped("adam", half(1))
    optimizer.set_mask(weight, half(2))
    assert optimizer.state[weight]["step"] == 3
    go(weight, optimizer, 1)
    assert optimizer.state[weight]["step"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_mask_changes_nothing(kind):
    weight, optimizer = stepped(kind, half())
    before = {name: id(value) for name, value in optimizer.state[weight].items()}
    optimizer.set_mask(weight, half())
    assert {name: id(value) for name, value in optimizer.state[weight].items()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_dead_weights_are_never_written(kind):
    weight, optimizer = stepped(kind, half(), steps=0)
    with torch.no_grad():
        weight[~half()] = float("nan")  # whatever they are, and whatever their gradient is
    before = weight.detach().clone()
    go(weight, optimizer, 3)
    assert torch.equal(weight.detach().isnan(), ~half())
    assert (weight[half()] != before[half()]).all()
    assert all(value.isfinite().all() for value in tensors(optimizer).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_mask_makes_the_state_dense_and_a_sparse_one_makes_it_short_again(kind):
    weight, optimizer = stepped(kind, half())
    before = tensors(optimizer)
    optimizer.set_mask(weight, torch.ones(10, 8, dtype=torch.bool))
    row = optimizer.state[weight]
    assert "mask" not in row
    for name in (name for name in before if name not in ("mask", "step")):
        assert row[name].shape == (10, 8)
        assert torch.equal(row[name][half()], before[name])
        assert not row[name][~half()].any()
    optimizer.set_mask(weight, half())
    assert tensors(optimizer).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in tensors(optimizer).items())


def test_a_mask_before_the_first_step_and_without_momentum_costs_its_bits_only():
    weight = nn.Parameter(torch.zeros(10, 8))
    optimizer = MaskedSGD([weight], lr=0.1)
    optimizer.set_mask(weight, torch.ones(10, 8, dtype=torch.bool))
    assert not optimizer.state
    optimizer.set_mask(weight, half())
    go(weight, optimizer, 2)
    assert {name: value.numel() for name, value in optimizer.state[weight].items()} == {"mask": 10}


def stored(optimizer):
    """Bytes by name, of the memory that is really held: a view would hold the whole."""
    return {name: v.untyped_storage().nbytes() for row in optimizer.state.values() for name, v in row.items()}


@pytest.mark.parametrize(("kind", "moments"), [("sgd", 1), ("adam", 3), ("adamw", 2)])
def test_state_at_five_percent_is_five_percent_of_the_dense_one_and_a_bit_a_weight(kind, moments):
    model = nn.Linear(200, 300, bias=False)
    optimizer = KINDS[kind](model.parameters())
    Sparsifier(model, RigL(every=2, stop=5), 0.05, optimizers=[optimizer])
    go(model.weight, optimizer, 6)
    held = stored(optimizer)
    held.pop("step", None)
    assert held.pop("mask") == 200 * 300 // 8
    assert len(held) == moments
    assert sum(held.values()) == moments * 200 * 300 * 4 * 5 // 100


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def twin(weight, optimizer, how):
    """Another weight and optimizer, of a new process, with the same state."""
    if how == "pickle":
        other, loaded = pickle.loads(pickle.dumps((weight, optimizer)))  # a gradient does not travel
        return other, loaded
    if how == "deepcopy":
        return copy.deepcopy((weight, optimizer))
    other = nn.Parameter(weight.detach().clone())
    loaded = type(optimizer)([other], lr=5.0)
    loaded.load_state_dict(saved(optimizer))
    return other, loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["load", "pickle", "deepcopy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_on_bit_for_bit_without_being_told_the_mask(kind, how, dtype):
    mask = half()
    weight, optimizer = stepped(kind, mask, dtype=dtype)
    other, loaded = twin(weight, optimizer, how)
    assert loaded.state[other]["mask"].dtype == torch.uint8
    before = tensors(loaded)
    loaded.set_mask(other, mask)  # what the engine does when it attaches
    assert all(torch.equal(value, before[name]) for name, value in tensors(loaded).items())
    for w, o in ((weight, optimizer), (other, loaded)):
        go(w, o, 2, seed=1)
        o.set_mask(w, half(7))
        go(w, o, 2, seed=2)
    assert torch.equal(weight, other)
    mine, theirs = tensors(optimizer), tensors(loaded)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert mine["step"] == 7 if "step" in mine else kind == "sgd"


def test_a_copy_and_its_original_do_not_share_masks():
    weight, optimizer = stepped("adamw", half())
    other, loaded = twin(weight, optimizer, "deepcopy")
    loaded.set_mask(other, half(2))
    before = weight.detach().clone()
    go(weight, optimizer, 1)
    assert torch.equal((weight != before), half())


def test_a_state_that_was_loaded_over_another_mask_brings_its_own():
    optimizer = stepped("adam", half(1))[1]
    other, loaded = stepped("adam", half(2))
    loaded.load_state_dict(saved(optimizer))
    before = other.detach().clone()
    go(other, loaded, 1)
    assert torch.equal(other != before, half(1))


def test_torchs_own_state_is_taken_and_cut_to_the_mask():
    mask, twins = half(), []
    for cls in (torch.optim.AdamW, MaskedAdamW):
        torch.manual_seed(3)
        weight = nn.Parameter(torch.randn(10, 8))
        twins.append((weight, cls([weight], lr=0.1)))
    (weight, theirs), (other, mine) = twins
    go(weight, theirs, 3)
    mine.load_state_dict(saved(theirs))
    mine.set_mask(other, mask)
    assert torch.equal(mine.state[other]["exp_avg"], theirs.state[weight]["exp_avg"][mask])
    with torch.no_grad():
        other.copy_(weight)
    go(weight, theirs, 2)
    go(other, mine, 2)
    assert torch.equal(other[mask], weight[mask])


def test_options_that_a_loaded_state_lacks_are_those_of_the_optimizer():
    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = ProxSGD([other], lr=0.1, l1=3.0, groups="rows")
    optimizer.load_state_dict(torch.optim.SGD([weight], lr=0.25).state_dict())
    options = {name: optimizer.param_groups[0][name] for name in ("lr", "l1", "groups")}
    assert options == {"lr": 0.25, "l1": 3.0, "groups": "rows"}


def test_a_state_that_was_put_back_by_hand_brings_its_own_mask():
    weight, optimizer = stepped("adam", half(1))
    early = {name: value.clone() for name, value in optimizer.state[weight].items()}
    optimizer.set_mask(weight, half(2))
    go(weight, optimizer, 1)
    optimizer.state[weight] = early  # rewinding does so
    before = weight.detach().clone()
    go(weight, optimizer, 1)
    assert torch.equal(weight != before, half(1))


def test_a_state_that_was_cleared_is_dense_until_the_mask_is_told_again():
    weight, optimizer = stepped("adam", half())
    optimizer.state.clear()
    go(weight, optimizer, 1)
    assert optimizer.state[weight]["exp_avg"].shape == (10, 8)
    optimizer.set_mask(weight, half())
    assert optimizer.state[weight]["exp_avg"].shape == (int(half().sum()),)
