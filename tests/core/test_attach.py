"""Optimizers come and go: attach, swap, grow, copy, detach."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from lightning_sparse import RigL, Sparsifier, Static
from lightning_sparse.core.schedules import ConstantSchedule

MOVING = RigL(every=4, stop=100, fraction=ConstantSchedule(0.5))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 9, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()


def dead(model, sparsifier):
    """How many entries outside the masks are not zero."""
    named = dict(model.named_parameters())
    return sum(int((~(named[name][~mask] == 0)).sum()) for name, mask in sparsifier.masks.items())


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def swap_by_detaching(sparsifier, old, new):
    sparsifier.detach()
    sparsifier.attach(new)


def swap_by_staging(sparsifier, old, new):
    sparsifier.stage(new)  # the old one still exists, and its hooks go


@pytest.mark.parametrize("swap", [swap_by_detaching, swap_by_staging])
def test_an_optimizer_swapped_during_the_run_is_followed_and_the_count_goes_on(swap):
    model = net()
    old = sgd(model)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[old])
    train(model, old, 6)  # masks moved after step 4
    new = torch.optim.AdamW(model.parameters(), lr=0.01)
    swap(sparsifier, old, new)
    assert (hooks(old), hooks(new)) == (0, 2)
    assert (sparsifier.steps, sparsifier.updates) == (6, 1)
    train(model, new, 2, start=6)  # and after step 8, not after 4 more
    assert (sparsifier.steps, sparsifier.updates) == (8, 2)
    assert dead(model, sparsifier) == 0


def test_an_optimizer_that_is_gone_makes_room_for_the_next():
    model = net()
    old = sgd(model)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[old])
    train(model, old, 3)
    del old
    gc.collect()
    new = sgd(model)
    sparsifier.attach(new)
    train(model, new, 1, start=3)
    assert (sparsifier.steps, sparsifier.updates, sparsifier.unattached()) == (4, 1, [])


def test_the_state_an_optimizer_brings_is_masked():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 3)  # dense
    sparsifier = Sparsifier(model, Static(), 0.3, optimizers=[optimizer])
    for name, mask in sparsifier.masks.items():
        state = optimizer.state[model.get_parameter(name)]
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            assert (moment[~mask] == 0).all()
            assert (moment[mask] != 0).any()


def test_a_layer_added_to_an_attached_optimizer_is_followed_once_attached_again():
    model = net()
    optimizer = sgd(model[0])
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    assert sparsifier.unattached() == ["2.weight"]
    train(model, optimizer, 3)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    sparsifier.attach(optimizer)
    train(model, optimizer, 3, start=3)
    assert sparsifier.unattached() == []
    assert dead(model, sparsifier) == 0
    assert hooks(optimizer) == 2
    assert (sparsifier.steps, sparsifier.updates) == (6, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_converted_after_the_masks_were_made_is_followed(dtype):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    model.to(dtype)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(2, 9, dtype=dtype)).sum().backward()
        optimizer.step()
    assert (sparsifier.updates, dead(model, sparsifier)) == (1, 0)


def test_a_layer_added_to_an_attached_optimizer_is_followed_by_itself():
    model = net()
    optimizer = sgd(model[0])
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    optimizer.add_param_group({"params": list(model[2].parameters())})
    train(model, optimizer, 3)
    assert dead(model, sparsifier) == 0


def test_two_optimizers_of_different_layers_are_both_followed():
    model = net()
    first, second = sgd(model[0]), torch.optim.AdamW(model[2].parameters(), lr=0.01)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[first, second])
    before = sparsifier.masks
    for step in range(8):
        train(model, first, 1, start=step)
        second.step()
    assert dead(model, sparsifier) == 0
    assert all(not torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())


def test_each_optimizer_counts_its_own_steps():
    model = net()
    fast, slow = sgd(model[0]), sgd(model[2])
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[fast, slow])
    before = sparsifier.masks["2.weight"]
    train(model, fast, 5)
    slow.step()
    saved = sparsifier.state_dict()["params"]
    assert [saved[name]["steps"] for name in saved] == [5, 1]
    assert sparsifier.steps == 5
    assert sparsifier.updates == 1
    assert torch.equal(sparsifier.masks["2.weight"], before)


def test_detach_leaves_no_hooks_and_enforces_nothing():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    train(model, optimizer, 5)
    masks = sparsifier.masks
    sparsifier.detach()
    assert hooks(optimizer) == 0
    assert sparsifier.unattached() == ["0.weight", "2.weight"]
    train(model, optimizer, 5, start=5)
    assert (sparsifier.steps, sparsifier.updates) == (5, 1)
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    assert dead(model, sparsifier) > 0


def test_finalize_zeroes_once_more_and_lets_go():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, Static(), 0.3, optimizers=[optimizer])
    with torch.no_grad():
        model[0].weight.add_(1.0)  # somebody wrote
    sparsifier.finalize()
    assert dead(model, sparsifier) == 0
    assert hooks(optimizer) == 0


def test_an_engine_that_nobody_holds_goes_on_enforcing():
    model = net()
    optimizer = sgd(model)
    masks = Sparsifier(model, Static(), 0.3, optimizers=[optimizer]).masks
    gc.collect()
    train(model, optimizer, 2)
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())


def test_engine_and_optimizer_go_together():
    model = net()
    optimizer = sgd(model)
    engine = weakref.ref(Sparsifier(model, Static(), 0.3, optimizers=[optimizer]))
    del optimizer
    gc.collect()
    assert engine() is None


def through_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle])
def test_a_clone_of_model_and_optimizer_is_plain_while_the_original_stays_followed(clone):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    train(model, optimizer, 5)
    other, stepping = clone((model, optimizer))
    assert stepping.param_groups[0]["params"][0] is other[0].weight
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert hooks(stepping) == 0
    train(other, stepping, 2)
    assert (sparsifier.steps, dead(model, sparsifier)) == (5, 0)
    assert dead(other, sparsifier) > 0
    train(model, optimizer, 3, start=5)
    assert (sparsifier.steps, sparsifier.updates, dead(model, sparsifier)) == (8, 2, 0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_moving_average_takes_the_masks(wrapped):
    model = net()
    average = torch.optim.swa_utils.AveragedModel(net(seed=5)) if wrapped else net(seed=5)
    sparsifier = Sparsifier(model, Static(), 0.3)
    sparsifier.shadow(average)
    assert dead(average.module if wrapped else average, sparsifier) == 0
    assert all((weight != 0).any() for weight in average.parameters())


def test_restart_counts_from_zero_and_keeps_the_masks():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, MOVING, 0.3, optimizers=[optimizer])
    train(model, optimizer, 6)
    masks = sparsifier.masks
    sparsifier.restart(MOVING)
    sparsifier.attach(optimizer)
    assert sparsifier.steps == 0
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    train(model, optimizer, 4)
    assert (sparsifier.steps, sparsifier.updates) == (4, 2)
