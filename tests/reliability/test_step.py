"""Failure modes 1 to 9: what an optimizer step does to masked weights, however it comes about."""

import pytest
import torch
from helpers import DENSITY, LIVE, TOTAL, Net, Recorder, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from modes import mode
from runs import MOVING, leaks, run
from torch import Tensor

from lightning_sparse import MaskUpdater, RigL, SparseMomentum, Static


@mode(
    1,
    "weight decay and momentum revive masked weights",
    right="masked weights are exactly 0 in every forward pass and after every step",
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_and_momentum_revive_nothing(optimizer):
    fit = run(MOVING, optimizer)
    assert fit.recorder.forwards == 36
    assert fit.recorder.moves >= 5
    assert (fit.recorder.leaks, leaks(fit.model, fit.updater.masks)) == (0, 0)


class Grown(Callback):
    """Optimizer state of weights right after they were grown."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        (updater,) = [c for c in trainer.callbacks if isinstance(c, MaskUpdater)]
        last, self.last = getattr(self, "last", updater.masks), {n: m.clone() for n, m in updater.masks.items()}
        for name, mask in updater.masks.items():
            state = trainer.optimizers[0].state[pl_module.get_parameter(name)]
            self.found += [state[key][mask & ~last[name]] for key in ("exp_avg", "exp_avg_sq")]


@mode(
    2,
    "dropped weights keep their optimizer state",
    right="the state of what was dropped or grown is 0, that of the rest is kept",
)
def test_dropped_and_grown_weights_have_no_optimizer_state():
    grown = Grown()
    fit = run(MOVING, "adamw", grown)
    assert fit.recorder.state_leaks == 0
    assert sum(value.numel() for value in grown.found) > 100
    assert not any(bool(value.any()) for value in grown.found)
    kept = fit.trainer.optimizers[0].state[fit.model.net[4].weight]["exp_avg"][fit.updater.masks["net.4.weight"]]
    assert kept.count_nonzero() > 100


@mode(
    3,
    "optimizers that mix entries (Muon, Shampoo, SOAP) write to masked weights although gradients are masked",
    right="zeroed again after the step, and so is their state",
)
def test_an_optimizer_that_mixes_entries_revives_nothing():
    fit = run(MOVING, "mixing")
    assert fit.recorder.moves >= 5
    assert (fit.recorder.leaks, fit.recorder.state_leaks) == (0, 0)


def scaled(optimizer: str, algorithm=MOVING, scale: float = 2.0**40, **settings):
    """float16 with a scale that overflows at first, and again whenever five good steps have passed."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale, growth_factor=2.0**24, backoff_factor=2.0**-24, growth_interval=5
    )
    taken = Taken()
    fit = run(algorithm, optimizer, taken, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **settings)
    return fit, taken.steps


class Taken(Callback):
    """Counts the steps that moved a bias, which no mask touches."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.before = pl_module.net[6].bias.detach().clone()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps += not torch.equal(self.before, pl_module.net[6].bias)


@mode(
    4,
    "a gradient scaler skips a step: growth from infinite gradients, counters that drift",
    right="no step, no update",
)
def test_a_step_that_a_scaler_skips_counts_for_nothing():
    fit, taken = scaled("sgd", max_epochs=2)
    assert taken <= 21, "fewer than three steps were skipped: the test says nothing"
    assert fit.updater.sparsifier.steps == taken
    assert fit.updater.sparsifier.updates == taken // 2
    assert fit.recorder.leaks == 0
    assert all(bool(w.isfinite().all()) for w in fit.model.parameters())


@mode(
    5,
    "a fused optimizer under a scaler: hooks run in a skipped step, gradients are scaled",
    right="a skipped step is seen as one; averages of gradients are unscaled",
)
def test_a_fused_step_that_a_scaler_skips_counts_for_nothing():
    fit, taken = scaled("fused", max_epochs=2)
    assert taken <= 21, "fewer than three steps were skipped: the test says nothing"
    assert (fit.updater.sparsifier.steps, fit.updater.sparsifier.updates) == (taken, taken // 2)
    assert fit.recorder.leaks == 0


@mode(5)
def test_averages_of_gradients_do_not_carry_the_scale_of_a_fused_optimizer():
    averages = []
    for scale in (1.0, 2.0**10):
        fit, taken = scaled("fused", SparseMomentum(every=100, stop=100), scale, max_epochs=-1, max_steps=2)
        assert taken == 2
        averages.append(fit.updater.sparsifier.params["net.4.weight"].state["momentum"])
    assert averages[0].abs().max() > 1e-4
    torch.testing.assert_close(*averages, rtol=0.05, atol=1e-4)


@mode(
    6,
    "growth from one accumulated batch, or from one rank",
    right="the same masks as with one big batch (ranks: see 54)",
)
def test_accumulated_batches_grow_what_one_big_batch_grows():
    whole = run(data=loader(8, 96))
    parts = run(data=loader(4, 96), accumulate_grad_batches=2)
    assert whole.recorder.moves >= 5
    assert parts.recorder.masks == whole.recorder.masks


@mode(7, "the last, incomplete accumulation window of an epoch", right="counts as a step, and masks move after it")
def test_the_incomplete_window_at_the_end_of_an_epoch_is_a_step():
    fit = run(RigL(every=3, stop=100), data=loader(4, 20), accumulate_grad_batches=2, max_epochs=2)  # 2 + 2 + 1 batches
    assert (fit.updater.sparsifier.steps, fit.updater.sparsifier.updates) == (6, 2)
    assert fit.recorder.moved_at(3)


@mode(8, "clipping sees the norm of the dense gradient", right="it sees that of the masked one")
def test_clipping_sees_the_norm_of_the_masked_gradient():
    norms = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):  # what the step before left
            (updater,) = [c for c in trainer.callbacks if isinstance(c, MaskUpdater)]
            if pl_module.net[4].weight.grad is not None:
                live = [w.grad * updater.masks.get(name, 1) for name, w in pl_module.named_parameters()]
                norms.append(float(torch.stack([gradient.norm() for gradient in live]).norm()))

    run(Static(), "sgd", Watch(), gradient_clip_val=0.01)
    assert len(norms) == 11
    assert norms == pytest.approx([0.01] * 11, rel=1e-3)  # less, where dead entries had a part in the norm


class Two(Net):
    """Body and head have an optimizer each; the head's steps twice a batch."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        lower, upper = self.optimizers()
        for optimizer in (lower, upper, upper):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, 0))
            optimizer.step()

    def configure_optimizers(self):
        head = list(self.net[6].parameters())
        rest = [*self.net[0].parameters(), *self.net[4].parameters()]
        return [torch.optim.AdamW(rest, lr=1e-2), torch.optim.SGD(head, lr=0.1, momentum=0.9)]


@mode(
    9,
    "manual optimization with several optimizers",
    right="each counts its own steps, and masks weights of its own only",
)
def test_each_of_several_optimizers_counts_its_own_steps():
    torch.manual_seed(1)
    fit = run(RigL(every=3, stop=24), model=Two())
    rows = fit.updater.sparsifier.state_dict()["params"]
    assert {name: row["steps"] for name, row in rows.items()} == dict(zip(LIVE, (12, 12, 24), strict=True))
    assert (fit.recorder.leaks, fit.recorder.state_leaks) == (0, 0)
    assert fit.updater.sparsifier.updates == 4 + 8
    assert {name: int(mask.sum()) for name, mask in fit.updater.masks.items()} == LIVE


@mode(9)
def test_an_optimizer_without_sparse_weights_is_left_alone():
    torch.manual_seed(1)
    model, updater = Two(), MaskUpdater(RigL(every=3, stop=24), DENSITY, include=["net.4"])
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(model, loader())
    assert updater.sparsifier.steps == 12
    assert bool(model.net[6].weight.all())
    assert sum(recorder.counts[-1].values()) == round(0.25 * 1920) != TOTAL
