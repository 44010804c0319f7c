"""The engine in raw PyTorch loops: what it makes, whom it follows, what it refuses."""

from dataclasses import replace

import pytest
import torch
from quick import NAMES, data, quick
from torch import nn

from lightning_sparse import RigL, Sparsifier, Static

MOVING = RigL(every=2, stop=100)
# ERK at 0.2 by hand: a layer gets eps * (sum of its dimensions): 11, 76, 15. eps = 0.2 * 840 / 102 = 1.6471 gives
# 18.12, 125.18, 24.71; the largest remainder gets the one that is missing to 168.
LIVE = {"0.weight": 18, "4.weight": 125, "6.weight": 25}


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 3))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step))

        def closure(x=x):
            optimizer.zero_grad()
            loss = (model(x) - x.flatten(1)[:, :3]).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_the_first_masks_have_the_planned_counts_and_dead_weights_are_zero():
    model = net()
    before = weights(model)
    sparsifier = Sparsifier(model, Static(), 0.2)
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == LIVE
    assert sparsifier.density() == 168 / 840
    assert sparsifier.densities() == {"0.weight": 18 / 36, "4.weight": 125 / 768, "6.weight": 25 / 36}
    for name, mask in sparsifier.masks.items():
        assert torch.equal(model.get_parameter(name), before[name] * mask)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name not in LIVE)


def test_magnitude_keeps_the_largest_weights():
    model = net()
    magnitude = model[4].weight.detach().abs().flatten()
    mask = Sparsifier(model, Static(), 0.2, init="magnitude").masks["4.weight"].flatten()
    assert magnitude[mask].min() > magnitude[~mask].max()


def test_global_magnitude_keeps_the_largest_weights_of_all_layers():
    model = net()
    magnitude = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in LIVE])
    masks = Sparsifier(model, Static(), 0.2, allocation="global", init="magnitude").masks
    mask = torch.cat([m.flatten() for m in masks.values()])
    assert int(mask.sum()) == 168
    assert magnitude[mask].min() > magnitude[~mask].max()


def test_global_leaves_every_layer_one_weight():
    model = net()
    model[6].weight.data *= 1e-6
    sparsifier = Sparsifier(model, Static(), 0.2, allocation="global", init="magnitude")
    counts = [int(m.sum()) for m in sparsifier.masks.values()]
    assert counts[2] == 1
    assert sum(counts) == 168


def test_masks_depend_on_the_seed_and_not_on_the_global_random_state():
    first = Sparsifier(net(), Static(), 0.2, seed=0).masks
    torch.rand(7)
    assert same(Sparsifier(net(seed=5), Static(), 0.2, seed=0).masks, first)
    other = Sparsifier(net(), Static(), 0.2, seed=1).masks
    assert all(not torch.equal(other[name], mask) for name, mask in first.items())


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True),
    "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_density_one_is_bit_identical_to_no_sparsifier(name, optimizer):
    plain, model = net(dropout=0.3), net(dropout=0.3)
    torch.manual_seed(3)
    train(plain, OPTIMIZERS[optimizer](plain), 10)
    random = torch.get_rng_state()
    torch.manual_seed(3)
    stepping = OPTIMIZERS[optimizer](model)
    sparsifier = Sparsifier(model, quick(name, 2, 9), 1.0, optimizers=[stepping], **data(1, 6, 6))
    train(model, stepping, 10)
    assert sparsifier.density() == 1.0
    assert same(weights(model), weights(plain))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", NAMES)
def test_a_sparse_run_leaves_the_global_random_state_alone(name):
    model = net()
    before = torch.get_rng_state()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, quick(name, 2, 9), 0.2, optimizers=[optimizer], **data(1, 6, 6))
    train(model, optimizer, 10)
    sparsifier.state_dict()
    assert torch.equal(torch.get_rng_state(), before)


def test_attaching_twice_changes_nothing():
    once, twice = net(), net()
    optimizers = sgd(once), sgd(twice)
    single = Sparsifier(once, MOVING, 0.2, optimizers=[optimizers[0]])
    double = Sparsifier(twice, MOVING, 0.2, optimizers=[optimizers[1], optimizers[1]])
    double.attach(optimizers[1])
    assert hooks(optimizers[1]) == hooks(optimizers[0]) == 2
    train(once, optimizers[0], 5)
    train(twice, optimizers[1], 5)
    assert double.steps == single.steps == 5
    assert same(weights(twice), weights(once))


def test_weights_of_two_optimizers_are_refused_and_untouched():
    model = net()
    before = weights(model)
    optimizers = [sgd(model[:5]), sgd(model[4:])]
    with pytest.raises(ValueError, match=r"two optimizers step the same weights: 4\.weight; give each to one"):
        Sparsifier(model, Static(), 0.2, optimizers=optimizers)
    assert same(weights(model), before)
    sparsifier = Sparsifier(model, Static(), 0.2, optimizers=optimizers[:1])
    with pytest.raises(ValueError, match=r"4\.weight"):
        sparsifier.attach(optimizers[1])
    assert hooks(optimizers[1]) == 0


class Hookless:
    """Steps, but tells nobody."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]


def test_an_optimizer_without_hooks_is_refused_and_weights_are_untouched():
    model = net()
    before = weights(model)
    with pytest.raises(ValueError, match="Hookless has no step hooks"):
        Sparsifier(model, Static(), 0.2, optimizers=[Hookless(model.parameters())])
    assert same(weights(model), before)
    with pytest.raises(TypeError, match="Hookless has no step hooks"):
        Sparsifier(model, Static(), 0.2).attach(Hookless(model.parameters()))


def test_all_problems_are_named_at_once_and_weights_are_untouched():
    model = net()
    before = weights(model)
    with pytest.raises(ValueError) as error:
        Sparsifier(model, RigL(stop=0.5), 1.5, allocation="global", optimizers=[Hookless(model.parameters())])
    text = str(error.value)
    assert "4 problems" in text
    for part in ("stop=0.5 is a share", "no step hooks", "needs init='magnitude'", "must be in (0, 1], got 1.5"):
        assert part in text
    assert same(weights(model), before)


def test_replacing_steps_of_lbfgs_is_refused_with_weights_untouched():
    model = net()
    before = weights(model)
    with pytest.raises(ValueError, match="replace_step=True cannot work with LBFGS"):
        Sparsifier(model, replace(MOVING, replace_step=True), 0.2, optimizers=[OPTIMIZERS["lbfgs"](model)])
    assert same(weights(model), before)


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match="init"):
        Sparsifier(net(), Static(), 0.2, init="magnitud")


def test_under_one_budget_for_all_layers_the_plan_says_what_each_got():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[1].weight.fill_(1.0)  # all smaller: one must live all the same
    sparsifier = Sparsifier(model, Static(), 0.5, allocation="global", init="magnitude")
    assert {row.name: row.live for row in sparsifier.plan.layers} == {"0.weight": 63, "1.weight": 1}
    again = Sparsifier(model, Static(), 0.5, allocation="global", state=sparsifier.state_dict())
    assert {name: p.live for name, p in again.params.items()} == {"0.weight": 63, "1.weight": 1}
    assert again.plan.layers == sparsifier.plan.layers
