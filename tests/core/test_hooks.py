"""Steps with closures in every form, and optimizers inside wrappers."""

import pytest
import torch
from torch import nn

from lightning_sparse import RigL, Sparsifier
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.schedules import ConstantSchedule


class Twice(torch.optim.Optimizer):
    """Calls its closure twice and sums both gradients, as methods that look ahead do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for _ in range(2):
            with torch.enable_grad():
                closure()
            for weight in weights:
                self.state[weight].setdefault("sum", torch.zeros_like(weight)).add_(weight.grad)
        for weight in weights:
            weight.sub_(self.state[weight]["sum"], alpha=self.param_groups[0]["lr"])


class Child(torch.optim.SGD):
    """Adds nothing to its parent's step but a name."""

    def step(self, closure=None):
        return super().step(closure)


def start(kind=torch.optim.SGD):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = kind(model.parameters(), lr=0.1)
    algorithm = RigL(every=2, stop=20, fraction=ConstantSchedule(0.5))
    return model, optimizer, Sparsifier(model, algorithm, 0.3, optimizers=[optimizer])


def backward(model, optimizer, step):
    x = torch.randn(8, 9, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    loss = (model(x) - x[:, :4]).square().mean()
    loss.backward()
    return loss


def plain(optimizer, closure):
    closure()
    optimizer.step()


STEPS = {
    "positional": lambda optimizer, closure: optimizer.step(closure),
    "keyword": lambda optimizer, closure: optimizer.step(closure=closure),
    "none": plain,
}


def trained(step_with, kind=torch.optim.SGD):
    model, optimizer, sparsifier = start(kind)
    for step in range(5):
        step_with(optimizer, lambda step=step: backward(model, optimizer, step))
    assert (sparsifier.steps, sparsifier.updates) == (5, 2)
    return model, sparsifier


@pytest.mark.parametrize("form", STEPS)
def test_a_step_is_the_same_in_every_form(form):
    expected, masks = trained(plain)
    model, sparsifier = trained(STEPS[form])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert all(torch.equal(mask, masks.masks[name]) for name, mask in sparsifier.masks.items())


def test_every_gradient_that_a_closure_makes_is_masked():
    model, optimizer, sparsifier = start(Twice)
    for step in range(5):
        optimizer.step(lambda step=step: backward(model, optimizer, step))
        for name, mask in sparsifier.masks.items():
            weight = model.get_parameter(name)
            assert (optimizer.state[weight]["sum"][~mask] == 0).all()
            assert (weight[~mask] == 0).all()
    assert (sparsifier.steps, sparsifier.updates) == (5, 2)


def test_a_step_that_calls_its_parents_step_counts_once():
    trained(plain)  # torch patches SGD.step here
    trained(plain, Child)


def test_the_loss_of_a_closure_comes_back():
    model, optimizer, _ = start()
    assert optimizer.step(lambda: backward(model, optimizer, 0)).item() > 0


def test_a_gradient_staged_by_hand_is_masked_at_once_and_grows_the_same():
    model, optimizer, sparsifier = start()
    twin, twin_optimizer, expected = start()
    for step in range(5):
        backward(model, optimizer, step)
        sparsifier.stage(optimizer)
        for name, mask in sparsifier.masks.items():
            gradient = model.get_parameter(name).grad
            assert (gradient[~mask] == 0).all()
            assert (gradient[mask] != 0).any()
        optimizer.step()
        backward(twin, twin_optimizer, step)
        twin_optimizer.step()
    assert (sparsifier.steps, sparsifier.updates) == (5, 2)
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in sparsifier.masks.items())


def test_staging_twice_grows_the_same():
    _, optimizer, sparsifier = start()
    _, twin_optimizer, expected = start()
    for stepping, engine, times in ((optimizer, sparsifier, 2), (twin_optimizer, expected, 1)):
        for step in range(2):
            for p in engine.params.values():
                generator = torch.Generator().manual_seed(step)
                p.place.weight.grad = torch.randn(p.mask.shape, generator=generator)
            for _ in range(times):
                engine.stage(stepping)
            stepping.step()
    assert expected.updates == 1
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in sparsifier.masks.items())


def test_a_scheduler_of_the_learning_rate_changes_nothing():
    model, optimizer, sparsifier = start()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for step in range(4):
        backward(model, optimizer, step)
        optimizer.step()
        scheduler.step()
    assert (sparsifier.steps, sparsifier.updates) == (4, 2)


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_wrappers_are_looked_through_to_the_optimizer():
    _, optimizer, _ = start()
    assert unwrap(Wrapper(Wrapper(optimizer))) is optimizer
    assert unwrap(optimizer) is optimizer


def test_an_error_in_a_step_is_the_users_and_the_next_step_goes_on():
    model, optimizer, sparsifier = start()

    def fails():
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        optimizer.step(fails)
    assert sparsifier.steps == 0
    for step in range(2):
        backward(model, optimizer, step)
        optimizer.step()
    assert (sparsifier.steps, sparsifier.updates) == (2, 1)
