"""What holds after every step, whatever the optimizer and the algorithm."""

from dataclasses import replace

import pytest
import torch
from quick import LATENT, NAMES, data, quick
from torch import nn

from lightning_sparse import RigL, Sparsifier
from lightning_sparse.core.schedules import ConstantSchedule

MOVING = RigL(every=3, stop=14, fraction=ConstantSchedule(0.4))
# ERK at 0.2, worked in test_sparsifier.py
LIVE = {"0.weight": 18, "4.weight": 125, "6.weight": 25}


class Mixing(torch.optim.Optimizer):
    """Like Muon: the momentum of a matrix is orthogonalised, so every entry of a step depends on all the others."""

    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for weight in (w for group in self.param_groups for w in group["params"] if w.grad is not None):
            momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            momentum.mul_(0.9).add_(weight.grad)
            move = momentum
            if weight.ndim >= 2:
                left, _, right = torch.linalg.svd(momentum.flatten(1), full_matrices=False)
                move = (left @ right).view_as(weight)
            weight.mul_(0.99).add_(move, alpha=-self.param_groups[0]["lr"])


OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda w: torch.optim.Adam(w, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda w: torch.optim.AdamW(w, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "lbfgs": lambda w: torch.optim.LBFGS(w, lr=0.1, max_iter=3),
    "mixing": Mixing,
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 3)
    )


def run(model, optimizer, steps, start=0, closure=True, after=lambda step: None, before_step=lambda step: None):
    for step in range(start + 1, start + steps + 1):
        x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step))

        def backward(x=x):
            optimizer.zero_grad()
            loss = (model(x) - x.flatten(1)[:, :3]).square().mean()
            loss.backward()
            return loss

        if closure:
            optimizer.step(backward)
        else:
            backward()
            before_step(step)
            optimizer.step()
        after(step)


def watch_forwards(model, sparsifier):
    """Fails in the very forward that sees a dead weight that is not zero; counts forwards."""
    seen = []

    def look(module, args):
        for name, mask in sparsifier.masks.items():
            leak = int((~(model.get_parameter(name)[~mask] == 0)).sum())  # NaN is not zero either
            assert leak == 0, f"forward {len(seen)} sees {leak} dead weights of {name}"
        seen.append(1)

    model.register_forward_pre_hook(look)
    return seen


def dead_state(model, optimizer, masks):
    """Entries of the optimizer's state outside the masks that are not exactly zero; LBFGS keeps flat vectors."""
    params = [w for group in optimizer.param_groups for w in group["params"]]
    by_weight = {model.get_parameter(name): mask for name, mask in masks.items()}
    flat = torch.cat([by_weight.get(w, torch.ones_like(w, dtype=torch.bool)).flatten() for w in params])
    found = 0
    for weight, row in optimizer.state.items():
        for value in row.values():
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
                    mask = by_weight.get(weight) if tensor.shape == weight.shape else flat
                    found += 0 if mask is None else int((~(tensor[~mask] == 0)).sum())
    return found


STEPS = [(kind, closure) for kind in OPTIMIZERS for closure in (True, False) if closure or kind != "lbfgs"]


@pytest.mark.parametrize(("kind", "closure"), STEPS)
def test_no_forward_sees_a_dead_weight_and_no_state_remembers_one(kind, closure):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    seen = watch_forwards(model, sparsifier)

    def after(step):
        assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == LIVE
        assert dead_state(model, optimizer, sparsifier.masks) == 0

    run(model, optimizer, 16, closure=closure, after=after)
    assert (sparsifier.steps, sparsifier.updates) == (16, 4)  # after 3, 6, 9, 12
    assert len(seen) >= 16
    assert optimizer.state  # there was something to look at


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.Rprop])
def test_no_state_remembers_a_dead_weight_under_optimizers_that_fill_it(kind):
    model = net()
    optimizer = kind(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    run(model, optimizer, 2)
    assert dead_state(model, optimizer, sparsifier.masks) == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_keeps_its_total_and_its_dead_weights_zero(name):
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier = Sparsifier(model, quick(name, 3, 14), 0.2, optimizers=[optimizer], **data(1, 6, 6))
    watch_forwards(model, sparsifier)
    totals = []

    def after(step):
        totals.append(sum(int(mask.sum()) for mask in sparsifier.masks.values()))
        assert all(p.live == int(p.mask.sum()) for p in sparsifier.params.values())
        if name not in LATENT or step >= 14:  # the optimizer's state is that of the latent weights, until they settle
            assert dead_state(model, optimizer, sparsifier.masks) == 0

    run(model, optimizer, 16, after=after)
    assert totals[-1] == 168
    ramps = ("gmp", "global_magnitude", "granet", "acdc", "str", "l0")
    assert name in ramps or set(totals) == {168}


@pytest.mark.parametrize("kind", ["sgd", "adamw", "mixing"])
def test_grown_weights_start_at_zero_with_a_clean_state(kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    last, grown_in_all = sparsifier.masks, []

    def after(step):
        nonlocal last
        for name, mask in sparsifier.masks.items():
            weight, grown = model.get_parameter(name), mask & ~last[name]
            grown_in_all.append(int(grown.sum()))
            assert (weight[grown] == 0).all()
            for value in optimizer.state[weight].values():
                assert not (isinstance(value, torch.Tensor) and value.shape == mask.shape and value[grown].any())
        last = sparsifier.masks

    run(model, optimizer, 3, after=after)
    # floor(0.4 * 18), floor(0.4 * 125), floor(0.4 * 25)
    assert grown_in_all == [0] * 6 + [7, 50, 10]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "mixing"])
def test_a_replaced_step_moves_masks_and_no_surviving_weight(kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    sparsifier = Sparsifier(model, replace(MOVING, replace_step=True), 0.2, optimizers=[optimizer])
    run(model, optimizer, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = sparsifier.masks
    run(model, optimizer, 1, start=2)
    assert (sparsifier.steps, sparsifier.updates) == (3, 1)
    for name, value in model.state_dict().items():
        survivors = masks[name] & sparsifier.masks[name] if name in masks else torch.ones_like(value)
        assert torch.equal(value, before[name] * survivors)
    run(model, optimizer, 1, start=3)
    assert not torch.equal(model[4].bias, before["4.bias"])  # the next step steps


def forget(layers):
    for layer in layers:
        layer.weight.grad = None


def test_an_update_without_any_gradient_waits_for_the_next_step():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    sparse = [model[0], model[4], model[6]]
    updates = []

    def before(step):
        forget(sparse if step == 3 else ())

    run(model, optimizer, 6, closure=False, before_step=before, after=lambda step: updates.append(sparsifier.updates))
    assert updates == [0, 0, 0, 1, 1, 2]  # 4 instead of 3, then 6 as ever


def test_a_layer_without_a_gradient_keeps_its_mask_while_the_others_move():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    masks = sparsifier.masks
    run(model, optimizer, 3, closure=False, before_step=lambda step: forget([model[4]] if step == 3 else ()))
    moved = {name: not torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items()}
    assert moved == {"0.weight": True, "4.weight": False, "6.weight": True}
    assert (model[4].weight[masks["4.weight"]] != 0).all()


def test_a_layer_without_a_gradient_keeps_its_mask_in_an_overdue_update_too():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = Sparsifier(model, MOVING, 0.2, optimizers=[optimizer])
    gone = {3: [model[0], model[4], model[6]], 4: [model[4]]}
    run(model, optimizer, 4, closure=False, before_step=lambda step: forget(gone.get(step, ())))
    assert sparsifier.updates == 1
