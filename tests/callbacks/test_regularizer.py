"""Regularizer in a Trainer: weighed once, on what it is told, beside masks."""

import pytest
import torch
from helpers import Net, loader, net, same, state_tensors, weights
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from penalized import NAMES, Idle, close, fitted, idle, moved, scaled
from torch.nn import functional as F

from lightning_sparse import LinearSchedule, Regularizer
from lightning_sparse.penalties import L1, L2, GroupLasso, Hoyer


class Penalized(Net):
    """What a user writes without this package: the penalty in the loss."""

    extra = staticmethod(lambda model: 0.0)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.extra(self)


def penalized(extra, optimizer="sgd"):
    model = Penalized(optimizer)
    model.load_state_dict(net(optimizer).state_dict())
    model.extra = extra
    return model


class ManualIdle(Idle):
    """Steps by hand, once through Lightning and once behind its back."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for wrapped in (True, False):
            optimizer = self.optimizers(use_pl_optimizer=wrapped)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("penalty", [L1(), L2(), GroupLasso(), Hoyer()], ids=repr)
def test_training_is_that_of_a_loss_with_the_penalty_in_it(penalty, optimizer):
    def extra(model):
        return 1e-3 * sum(penalty.value(model.get_parameter(name)) for name in NAMES)

    model, _ = fitted([Regularizer(penalty, 1e-3)], net(optimizer), precision="64-true")
    by_hand, _ = fitted([], penalized(extra, optimizer), precision="64-true")
    close(model, by_hand, rtol=1e-7, atol=1e-9)


def test_activations_are_those_of_a_loss_with_the_penalty_in_it():
    class Watched(Net):
        def training_step(self, batch, batch_idx):
            first = self.net[:2](batch[0])
            second = self.net[2:6](first)
            extra = (first.abs().sum() + second.abs().sum()) / len(batch[0])
            return F.cross_entropy(self.net[6](second), batch[1]) + 1e-3 * extra

    by_hand = Watched()
    by_hand.load_state_dict(net().state_dict())
    # five windows of two batches and one of a single batch, which Lightning weighs by a half too
    settings = {"precision": "64-true", "accumulate_grad_batches": 2}
    model, _ = fitted([Regularizer("l1", 1e-3, on="activations")], data=loader(4, 44), **settings)
    fitted([], by_hand, data=loader(4, 44), **settings)
    close(model, by_hand, rtol=1e-7, atol=1e-9)


class Sloped(Net):
    """A gradient penalty of the user's own goes backward through the activations first."""

    strength = 0.0

    def training_step(self, batch, batch_idx):
        images = batch[0].requires_grad_()
        first = self.net[:2](images)
        second = self.net[2:6](first)
        outputs = self.net[6](second)
        (slope,) = torch.autograd.grad(outputs.square().sum(), images, create_graph=True)
        extra = (first.abs().sum() + second.abs().sum()) / len(images)
        return F.cross_entropy(outputs, batch[1]) + 0.01 * slope.square().sum() + self.strength * extra


def test_a_gradient_penalty_of_the_users_own_does_not_pay_for_activations():
    model, by_hand = Sloped(), Sloped()
    for sloped in (model, by_hand):
        sloped.load_state_dict(net().state_dict())
    by_hand.strength = 1e-2
    fitted([Regularizer("l1", 1e-2, on="activations")], model, precision="64-true")
    fitted([], by_hand, precision="64-true")
    close(model, by_hand, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {"proximal": True}, {"on": "activations"}], ids=str)
def test_accumulated_batches_are_one_big_batch(settings):
    runs = [
        fitted([Regularizer("l1", 1e-2, **settings)], data=loader(*batch), precision="64-true", **more)[0]
        for batch, more in (((16, 96), {}), ((4, 96), {"accumulate_grad_batches": 4}))
    ]
    close(*runs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 3, 5])
@pytest.mark.parametrize("proximal", [False, True])
def test_a_step_moves_a_weight_by_lr_times_strength(accumulate, proximal):
    model, fit = fitted([Regularizer("l1", 0.01, proximal=proximal)], idle(), accumulate_grad_batches=accumulate)
    moved(model, 0.01, fit.global_step)
    assert fit.global_step == -(-12 // accumulate)


@pytest.mark.parametrize("proximal", [False, True])
def test_manual_steps_pay_once_each_however_they_are_made(proximal):
    model = ManualIdle()
    model.load_state_dict(net().state_dict())
    fitted([Regularizer("l1", 0.01, proximal=proximal)], model)
    moved(model, 0.01, 24)


class Taken(Callback):
    """Which batches ended in a step that was really taken, by a bias that no penalty touches."""

    def __init__(self):
        self.steps, self.still = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = weights(pl_module)
        self.steps.append(not torch.equal(now["net.6.bias"], self._before["net.6.bias"]))
        self.still.append(same(now, self._before))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused"])
@pytest.mark.parametrize("proximal", [False, True])
def test_a_step_that_the_scaler_skips_changes_nothing_and_does_not_count(proximal, optimizer):
    taken, regularizer = Taken(), Regularizer("l1", LinearSchedule(1e-3, 0.0), proximal=proximal)
    fitted([regularizer, taken], net(optimizer), max_epochs=2, **scaled(growth_interval=5))
    assert taken.steps.count(False) >= 3, "nothing was skipped: the test says nothing"
    assert all(still for step, still in zip(taken.steps, taken.still, strict=True) if not step)
    assert regularizer.state_dict()["steps"] == [taken.steps.count(True)]


@pytest.mark.parametrize("kind", [Idle, ManualIdle])
@pytest.mark.parametrize("optimizer", ["sgd", "fused"])
def test_the_scale_of_a_scaler_does_not_weigh_the_penalty(kind, optimizer):
    model = kind(optimizer)
    model.load_state_dict(net().state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    if kind is ManualIdle:  # what steps behind Lightning's back under a scaler is unscaled by nobody
        model.optimizers = lambda use_pl_optimizer=True: Net.optimizers(model)
    fitted([Regularizer("l1", 0.01)], model, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    moved(model, 0.01, 24 if kind is ManualIdle else 12)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_scale_of_a_scaler_does_not_weigh_activations(precision, accumulate):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if precision == "16-mixed" else None
    settings = {"accumulate_grad_batches": accumulate, "max_steps": 1}
    regularizer = [Regularizer("l1", 0.1, on="activations") for _ in range(2)]
    model, _ = fitted(regularizer[:1], idle(), plugins=[MixedPrecision(precision, "cpu", scaler=scaler)], **settings)
    plain, _ = fitted(regularizer[1:], idle(), **settings)
    start = weights(net())
    for name, value in weights(plain).items():
        wanted, found = value - start[name], weights(model)[name] - start[name]
        assert float((found - wanted).norm()) <= 0.2 * float(wanted.norm()), name  # a unit near zero may flip
    assert not torch.equal(plain.net[0].weight, start["net.0.weight"])


def test_the_penalty_is_clipped_with_the_rest():
    model, _ = fitted([Regularizer("l1", 0.01)], idle(), max_steps=1, gradient_clip_val=0.05)
    start = weights(net())
    norm = sum(((start[name] - value) / 0.1).square().sum() for name, value in weights(model).items()).sqrt()
    assert float(norm) == pytest.approx(0.05, rel=1e-3)


class Two(Idle):
    """The body steps once a batch, the head twice."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        lower, upper = self.optimizers()
        for optimizer in (lower, upper, upper):
            lower.zero_grad()
            upper.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[:6].parameters(), lr=0.1), torch.optim.SGD(self.net[6].parameters(), lr=0.1)]


def test_each_weight_pays_in_the_steps_of_its_own_optimizer():
    model, regularizer = Two(), Regularizer("l1", 0.005)
    model.load_state_dict(net().state_dict())
    fitted([regularizer], model)
    assert regularizer.state_dict()["steps"] == [12, 24]
    start, now = weights(net()), weights(model)
    for name, steps in zip(NAMES, (12, 12, 24), strict=True):
        far = start[name].abs() > 0.05
        left = 0.1 * 0.005 * steps * start[name].sign()
        torch.testing.assert_close((start[name] - now[name])[far], left[far], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"proximal": True}, {"on": "activations"}], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_strength_zero_is_bit_for_bit_no_callback_at_all(settings, optimizer):
    runs = []
    for callbacks in ([], [Regularizer("l1", 0.0, **settings)]):
        model, fit = fitted(callbacks, net(optimizer, dropout=0.25), loader(shuffle=True), log_every_n_steps=2)
        runs.append((weights(model), state_tensors(fit.optimizers[0]), {"rng": torch.get_rng_state()}))
    assert all(same(left, right) for left, right in zip(*runs, strict=True))


def test_the_global_random_state_is_the_users():
    states = []
    for callbacks in ([], [Regularizer("hoyer", 1e-3), Regularizer("l1", 1e-3, on="activations", name="b")]):
        fitted(callbacks, net(dropout=0.25), loader(shuffle=True))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Raw(Idle):
    """Even batches overflow under the scaler; odd ones step behind Lightning's back."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=batch_idx % 2 == 0)
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss * float("inf") if batch_idx % 2 == 0 else loss)
        optimizer.step()


def test_a_step_by_hand_pays_after_one_that_was_skipped():
    model = Raw()
    model.load_state_dict(net().state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    regularizer = Regularizer("l1", 0.01)
    fitted([regularizer], model, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert regularizer.state_dict()["steps"] == [6]
    moved(model, 0.01, 6)
