"""Reduced precision, and steps that a gradient scaler skips."""

import pytest
import torch
from helpers import (
    DENSITY,
    LIVE,
    TOTAL,
    ByHand,
    Net,
    Recorder,
    loader,
    net,
    same,
    saver,
    state_tensors,
    trainer,
    weights,
)
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_sparse import GMP, SET, STR, MaskUpdater, RigL, SparseMomentum

ALGORITHMS = {
    "rigl": RigL(every=2, stop=1.0),
    "set": SET(every=2, stop=1.0),
    "replace_step": RigL(every=2, stop=1.0, replace_step=True),
    "momentum": SparseMomentum(every=2),
    "gmp": GMP(every=2, stop=8),
}


class Steps(Callback):
    """Counts batches and the steps that were really taken, and says how masks fared where one was skipped."""

    def __init__(self, updater):
        self.updater, self.batches, self.taken, self.skipped = updater, 0, 0, []

    def on_train_start(self, trainer, pl_module):
        self._before = pl_module.net[6].bias.detach().clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = pl_module.net[6].bias.detach().clone()
        self._masks = {name: mask.clone() for name, mask in self.updater.masks.items()}
        self._steps = self.updater.sparsifier.steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        moved = any(not torch.equal(mask, self._masks[name]) for name, mask in self.updater.masks.items())
        if torch.equal(self._before, pl_module.net[6].bias) and not moved:
            self.skipped.append(self._steps + 1)  # the step it would have been
            assert self.updater.sparsifier.steps == self._steps
        else:
            self.taken += 1
            assert self.updater.sparsifier.steps == self._steps + 1


def scaled(**settings):
    """float16 with a scale that overflows at first, and again whenever five good steps have passed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_factor=2.0**24, backoff_factor=2.0**-24, **settings)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def run(algorithm, optimizer="sgd", model=None, **settings):
    updater = MaskUpdater(algorithm, DENSITY)
    recorder, steps = Recorder(updater), Steps(updater)
    model = model or net(optimizer)
    trainer([updater, recorder, steps], max_epochs=2, **settings).fit(model, loader())
    assert recorder.leaks == 0
    assert all(bool(w.isfinite().all()) for w in model.parameters())
    return updater, recorder, steps


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_weights_stay_sparse_in_every_precision(name, optimizer, precision):
    updater = MaskUpdater(ALGORITHMS[name], DENSITY)
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=2, precision=precision).fit(net(optimizer), loader())
    assert recorder.leaks == 0
    assert recorder.state_leaks == 0
    assert recorder.moves >= 3
    assert sum(recorder.counts[-1].values()) == TOTAL


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused"])
@pytest.mark.parametrize("name", ["rigl", "set", "momentum", "gmp"])
def test_a_step_that_the_scaler_skips_is_no_step(name, optimizer):
    updater, recorder, steps = run(ALGORITHMS[name], optimizer, **scaled(growth_interval=5))
    assert len(steps.skipped) >= 3, "nothing was skipped: the test says nothing"
    assert any(step % 2 == 0 for step in steps.skipped), "no update was due at a skipped step"
    assert updater.sparsifier.steps == steps.taken == 24 - len(steps.skipped)
    assert recorder.state_leaks == 0
    assert recorder.moves >= 3
    if name in ("rigl", "set"):
        assert all(counts == LIVE for counts in recorder.counts)


@pytest.mark.parametrize("optimizer", ["sgd", "fused"])
def test_the_momentum_averages_unscaled_gradients(optimizer):
    updater, _, steps = run(ALGORITHMS["momentum"], optimizer, **scaled(growth_interval=5))
    assert steps.skipped
    largest = max(float(p.state["momentum"].abs().max()) for p in updater.sparsifier.params.values())
    assert 1e-4 < largest < 10


class Manual(ByHand, Net):
    """Manual optimization: the whole of it is the user's."""


@pytest.mark.parametrize("name", ["rigl", "momentum", "gmp"])
def test_manual_optimization_with_a_scaler_skips_alike(name):
    torch.manual_seed(1)
    updater, recorder, steps = run(ALGORITHMS[name], model=Manual(), **scaled(growth_interval=5))
    assert len(steps.skipped) >= 3
    assert updater.sparsifier.steps == steps.taken
    assert recorder.moves >= 3


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("algorithm", [None, RigL(every=3, stop=1.0), STR(every=3)], ids=["dense", "rigl", "str"])
def test_a_double_run_resumes_bit_for_bit_only_if_its_model_is_double_before_it(algorithm, double, tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=12.ckpt", 7)):
        model = net("adamw", seed=seed)
        model = model.double() if double else model  # else Lightning loads float64 into float32, also without us
        updaters = [] if algorithm is None else [MaskUpdater(algorithm, DENSITY)]
        callbacks = [*updaters, saver(tmp_path, 12)]
        fit = trainer(callbacks, max_epochs=2, precision="64-true", enable_checkpointing=True)
        fit.fit(model, loader(), ckpt_path=start)
        ends.append([weights(model), state_tensors(fit.optimizers[0]), *(updater.masks for updater in updaters)])
    assert all(same(left, right) for left, right in zip(*ends, strict=True)) is double
