"""Resume is bit for bit; what does not fit is refused and changes nothing."""

import copy
import io
import warnings

import pytest
import torch
from quick import FIXED, NAMES, data, quick
from torch import nn

from lightning_sparse import SET, RigL, Sparsifier
from lightning_sparse.core.checkpoint import saved_masks

OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda w: torch.optim.AdamW(w, lr=1e-2, weight_decay=0.1),
    "lbfgs": lambda w: torch.optim.LBFGS(w, lr=0.1, max_iter=3),
}


def net(seed=0, inputs=9):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 13), nn.Tanh(), nn.Linear(13, 4))


def train(model, optimizer, first, last, spoil=()):
    """Steps ``first`` to ``last``; gradients of the steps in ``spoil`` are missing."""
    for step in range(first, last + 1):
        x = torch.randn(8, 9, generator=torch.Generator().manual_seed(step))

        def closure(x=x, step=step):
            optimizer.zero_grad()
            loss = (model(x) - x[:, :4]).square().mean()
            loss.backward()
            if step in spoil:
                model[0].weight.grad = model[2].weight.grad = None
            return loss

        optimizer.step(closure)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value, at=""):
    """Every leaf of nested containers by its path."""
    if isinstance(value, dict | list | tuple):
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in rows for path, leaf in flat(part, f"{at}/{key}").items()}
    return {at: value}


def same(left, right):
    left, right = flat(left), flat(right)
    return left.keys() == right.keys() and all(
        torch.equal(a, right[k]) if isinstance(a, torch.Tensor) else a == right[k] for k, a in left.items()
    )


def start(name, kind, density=0.3):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    return model, optimizer, Sparsifier(model, quick(name, 3, 17), density, optimizers=[optimizer], **data(9))


def resume(states, name, kind, seed=77):
    """Fresh objects, with other first weights and another random state, brought to the saved state."""
    model = net(seed)
    optimizer = OPTIMIZERS[kind](model.parameters())
    model.load_state_dict(states["model"])
    optimizer.load_state_dict(states["optimizer"])
    saved = states["sparsifier"]
    return model, optimizer, Sparsifier(model, quick(name, 3, 17), 0.3, optimizers=[optimizer], state=saved)


def states_of(run):
    return dict(zip(("model", "optimizer", "sparsifier"), (part.state_dict() for part in run), strict=True))


# Step 9 moves masks: a save right after it, right before it, and between two updates.
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in NAMES for kind in OPTIMIZERS])
@pytest.mark.parametrize("pause", [8, 9, 10])
def test_a_resumed_run_is_bit_identical_to_one_that_went_straight_on(name, kind, pause):
    whole = start(name, kind)
    train(*whole[:2], 1, 20)
    half = start(name, kind)
    train(*half[:2], 1, pause)
    resumed = resume(through_a_file(states_of(half)), name, kind)
    assert same(states_of(resumed), states_of(half))
    train(*resumed[:2], pause + 1, 20)
    assert same(states_of(resumed), states_of(whole))
    assert resumed[2].steps == 20
    assert resumed[2].updates == (0 if name in FIXED else whole[2].updates)


def test_an_update_that_waits_for_a_gradient_still_waits_after_a_resume():
    whole = start("rigl", "sgd")
    train(*whole[:2], 1, 8, spoil=[6])
    assert whole[2].updates == 2  # after 3, and after 7 instead of 6
    half = start("rigl", "sgd")
    train(*half[:2], 1, 6, spoil=[6])
    resumed = resume(through_a_file(states_of(half)), "rigl", "sgd")
    assert resumed[2].updates == 1
    train(*resumed[:2], 7, 8)
    assert same(states_of(resumed), states_of(whole))


def test_masks_take_one_bit_a_weight():
    _, _, sparsifier = start("rigl", "sgd")
    rows = sparsifier.state_dict()["params"]
    assert {name: row["mask"].numel() for name, row in rows.items()} == {"0.weight": 15, "2.weight": 7}  # 117/8, 52/8
    assert all(row["mask"].dtype == torch.uint8 for row in rows.values())
    tensors = [leaf for leaf in flat(sparsifier.state_dict()).values() if isinstance(leaf, torch.Tensor)]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == 22  # none drags a larger storage along


def test_masks_can_be_read_without_a_model():
    _, _, sparsifier = start("rigl", "sgd")
    assert same(saved_masks(through_a_file(sparsifier.state_dict())), sparsifier.masks)


def test_a_saved_state_does_not_move_with_the_run():
    model, optimizer, sparsifier = start("sparse_momentum", "sgd")
    train(model, optimizer, 1, 4)
    saved = sparsifier.state_dict()
    frozen = copy.deepcopy(saved)
    train(model, optimizer, 5, 8)
    assert same(saved, frozen)


def test_a_loaded_state_does_not_move_with_the_run():
    first = start("sparse_momentum", "sgd")
    train(*first[:2], 1, 4)
    states = states_of(first)
    frozen = copy.deepcopy(states["sparsifier"])
    resumed = resume(copy.deepcopy(states), "sparse_momentum", "sgd")
    sparsifier = Sparsifier(resumed[0], quick("sparse_momentum", 3, 17), 0.3, state=states["sparsifier"])
    sparsifier.attach(torch.optim.SGD(resumed[0].parameters(), lr=0.1))
    train(*resumed[:2], 5, 8)
    assert same(states["sparsifier"], frozen)


def test_weights_outside_the_saved_masks_are_zeroed():
    _, _, sparsifier = start("rigl", "sgd")
    dense = net(seed=3)
    loaded = Sparsifier(dense, quick("rigl", 3, 17), 0.3, seed=9, state=sparsifier.state_dict())
    for name, mask in sparsifier.masks.items():
        assert torch.equal(loaded.masks[name], mask)
        assert torch.equal(dense.get_parameter(name) != 0, mask)


def test_loading_into_an_attached_engine_goes_on_enforcing():
    model, optimizer, sparsifier = start("rigl", "sgd")
    sparsifier.load_state_dict(sparsifier.state_dict())
    train(model, optimizer, 1, 2)
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in sparsifier.masks.items())


def test_lbfgs_forgets_when_other_masks_are_loaded_during_a_run():
    model, optimizer, sparsifier = start("static", "lbfgs")
    train(model, optimizer, 1, 3)
    sparsifier.load_state_dict(Sparsifier(net(), quick("static", 3, 17), 0.3, seed=9).state_dict())

    def look(module, args):
        assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in sparsifier.masks.items())

    model.register_forward_pre_hook(look)
    train(model, optimizer, 4, 5)


def drop_a_bit(state):
    bits = state["params"]["0.weight"]["mask"]
    bits[bits.nonzero()[0]] = 0


def change(**row):
    return lambda state: state["params"]["0.weight"].update(row)


def lose_a_byte(state):
    row = state["params"]["0.weight"]
    row["mask"] = row["mask"][:-1]


SPOILED = {
    "a torn mask": (drop_a_bit, r"torn: 0\.weight: the mask has \d+ live weights, \d+ were saved"),
    "a mask too short": (lose_a_byte, r"needs 15 bytes, got 14"),
    "another version": (lambda state: state.update(version=99), "of version 99; this is version 1"),
    "no version": (lambda state: state.clear(), "of version None"),
    "a layer less": (lambda state: state["params"].pop("0.weight"), r"0\.weight is sparse here, but not in the check"),
    "another shape": (change(shape=[9, 13]), r"0\.weight has shape \[9, 13\] in the checkpoint and \[13, 9\] here"),
    "another budget": (change(target=5), r"0\.weight has a budget of 5 live weights in the checkpoint and \d+ here"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(case):
    spoil, message = SPOILED[case]
    model, optimizer, sparsifier = start("rigl", "sgd")
    saved = copy.deepcopy(sparsifier.state_dict())
    train(model, optimizer, 1, 4)
    before = copy.deepcopy(states_of((model, optimizer, sparsifier)))
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        sparsifier.load_state_dict(saved)
    assert same(states_of((model, optimizer, sparsifier)), before)
    train(model, optimizer, 5, 5)
    assert sparsifier.steps == 5  # still attached


def test_the_state_of_another_model_is_refused_with_all_misfits_and_weights_untouched():
    _, _, sparsifier = start("rigl", "sgd")
    other = nn.Sequential(nn.Linear(8, 13), nn.Linear(13, 4))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError) as error:
        Sparsifier(other, quick("rigl", 3, 17), 0.3, state=sparsifier.state_dict())
    for part in ("2.weight is sparse in the checkpoint", "1.weight is sparse here", "0.weight has shape [13, 9]"):
        assert part in str(error.value)
    assert same(other.state_dict(), before)


def test_the_state_of_another_density_is_refused_with_the_way_out():
    _, _, sparsifier = start("rigl", "sgd")
    with pytest.raises(ValueError, match="use the density and allocation it was trained with"):
        Sparsifier(net(), quick("rigl", 3, 17), 0.4, state=sparsifier.state_dict())


def test_another_algorithm_goes_on_with_a_warning_and_the_same_does_not_warn():
    _, _, sparsifier = start("rigl", "sgd")
    with pytest.warns(UserWarning, match="trained by RigL, SET goes on"):
        loaded = Sparsifier(net(), SET(every=3, stop=9), 0.3, state=sparsifier.state_dict())
    assert same(loaded.masks, sparsifier.masks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sparsifier(net(), RigL(every=5, stop=50), 0.3, state=sparsifier.state_dict())
