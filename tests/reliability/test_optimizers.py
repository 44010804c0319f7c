"""Failure modes 10 to 18: optimizers and loops that are not the usual ones."""

import pytest
import torch
from helpers import DENSITY, LIVE, Bare, Net, Recorder, body, loader, net, same, trainer, weights
from lightning.pytorch import Callback, LightningModule
from modes import mode
from runs import MOVING, hooks, leaks, run
from torch import nn
from torch.nn import functional as F

from lightning_sparse import MaskUpdater, RigL


class Manual(Net):
    """One optimizer stepped by hand; ``raw`` goes behind Lightning's back."""

    automatic_optimization = False
    raw = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=not self.raw)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Raw(Manual):
    raw = True


@mode(
    10,
    "`optimizers(use_pl_optimizer=False)`: Lightning calls no hook and counts no step",
    right="the same masks and weights as under automatic optimization",
)
@pytest.mark.parametrize("kind", [Manual, Raw])
def test_raw_steps_are_followed_like_any_other(kind):
    torch.manual_seed(1)
    model = kind()
    by_hand, automatic = run(model=model), run()
    assert by_hand.updater.sparsifier.updates == automatic.updater.sparsifier.updates == 5
    assert by_hand.recorder.leaks == 0
    assert same(by_hand.updater.masks, automatic.updater.masks)
    assert same(weights(by_hand.model), weights(automatic.model))


@mode(
    11,
    "LBFGS: several forward passes a step, and a history of older masks",
    right="masked weights are 0 in each of them; the history is forgotten when masks move",
)
def test_every_closure_of_lbfgs_sees_masked_weights():
    histories = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            histories[batch_idx + 1] = len(trainer.optimizers[0].state)

    fit = run(MOVING, "lbfgs", Look())
    assert fit.recorder.forwards >= 2.5 * 36
    assert fit.recorder.leaks == 0
    moved = {step for step in range(2, 13) if fit.recorder.moved_at(step)}
    assert moved == {2, 4, 6, 8, 10}  # and 12, whose share of weights rounds to none
    assert {step for step, size in histories.items() if size == 0} == moved


@mode(
    12,
    "`training_step` returns None, a gradient is None, a layer is not used",
    right="skipped, no crash, no masked weight revived",
)
@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_steps_without_gradients_are_survived():
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(10, 10)

        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)

    torch.manual_seed(1)
    fit = run(model=Lazy(), masks={"allocation": "uniform"})
    assert fit.recorder.leaks == 0
    assert fit.recorder.moves >= 3
    assert {sum(counts.values()) for counts in fit.recorder.counts} == {round(0.25 * (2128 + 100))}
    assert {counts["idle.weight"] for counts in fit.recorder.counts} == {25}


@mode(
    13,
    "weights changed between forward and backward break autograd",
    right="no weight is written between the forward pass and the step",
)
def test_no_weight_is_written_between_forward_and_backward():
    versions = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            self.before = [w._version for w in pl_module.parameters()]  # the forward pass is over

        def on_after_backward(self, trainer, pl_module):
            versions.append((self.before, [w._version for w in pl_module.parameters()]))

    run(MOVING, "sgd", Watch())
    assert len(versions) == 12
    assert all(before == after for before, after in versions)
    assert versions[0][0] != versions[-1][0], "nothing was written at all"


@mode(
    14,
    "the optimizer object is replaced during the fit",
    right="the new one is followed from its first step on, counts go on",
)
def test_an_optimizer_put_in_during_the_fit_is_followed():
    class Swap(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.old = trainer.optimizers[0]
                trainer.strategy.optimizers = [torch.optim.AdamW(pl_module.parameters(), lr=1e-2, weight_decay=0.1)]

    swap = Swap()
    fit = run(MOVING, "sgd", swap, max_epochs=2)
    assert (fit.updater.sparsifier.steps, fit.updater.sparsifier.updates) == (24, 11)
    assert (fit.recorder.leaks, fit.recorder.state_leaks) == (0, 0)
    assert hooks(swap.old) == 0


@mode(15, "an optimizer without torch's step hooks", right="refused before a weight is touched, with the way out")
def test_an_optimizer_without_hooks_is_refused():
    model = net()
    before = weights(model)
    model.configure_optimizers = lambda: Bare(model.parameters())
    with pytest.raises((TypeError, ValueError), match=r"Bare has no step hooks .*torch\.optim\.Optimizer"):
        trainer([MaskUpdater("rigl", DENSITY)], max_epochs=1).fit(model, loader())
    assert same(weights(model), before)


class Replace(Callback):
    """Puts a new Parameter in the place of one, before the second epoch."""

    def __init__(self, into_optimizer: bool) -> None:
        self.into_optimizer = into_optimizer

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            pl_module.net[4].weight = nn.Parameter(torch.ones(20, 96))
            if self.into_optimizer:
                trainer.optimizers[0].param_groups[0]["params"][2] = pl_module.net[4].weight


@mode(
    16,
    "a Parameter is replaced during the fit",
    right="the new one is masked; a warning where no optimizer steps it",
)
def test_a_parameter_put_in_during_the_fit_is_masked():
    fit = run(MOVING, "sgd", Replace(into_optimizer=True), max_epochs=2)
    assert leaks(fit.model, fit.updater.masks) == 0
    assert bool((fit.model.net[4].weight[fit.updater.masks["net.4.weight"]] != 1).any())


@mode(16)
def test_a_parameter_that_no_optimizer_steps_is_named():
    with pytest.warns(UserWarning, match=r"no optimizer steps net\.4\.weight"):
        fit = run(MOVING, "sgd", Replace(into_optimizer=False), max_epochs=2)
    assert leaks(fit.model, fit.updater.masks) == 0


@mode(17, "a compiled optimizer step", right="works: the same masks as after the plain step")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_followed(monkeypatch):
    # what it is for is CUDA graphs, and it would load the whole of inductor
    monkeypatch.setattr("torch._dynamo.variables.optimizer._is_static_for_cudagraphs", lambda tensor: True)
    runs = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = Raw("adam")
        model.configure_optimizers = lambda model=model, compiled=compiled: stepper(model, compiled)
        runs.append(run(RigL(every=2, stop=4), model=model, limit_train_batches=5))
    plain, other = runs
    assert other.updater.sparsifier.updates == 2
    assert same(plain.updater.masks, other.updater.masks)
    assert leaks(other.model, other.updater.masks) == 0


def stepper(model, compiled):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if compiled:
        optimizer.step = torch.compile(optimizer.step, backend="eager")
    return optimizer


class Gan(LightningModule):
    """Both networks get gradients in every batch; each optimizer steps its own, in turn."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.maker, self.judge, self.dense = nn.Linear(8, 72), body(), []

    def training_step(self, batch, batch_idx):
        makes, judges = self.optimizers()
        fake = self.maker(torch.ones(4, 8) * batch_idx).view(4, 2, 6, 6)
        makes.zero_grad()
        judges.zero_grad()
        self.manual_backward(F.cross_entropy(self.judge(batch[0] + fake), batch[1]))
        gradient = self.maker.weight.grad.clone()
        (makes if batch_idx % 2 else judges).step()
        if batch_idx % 2 == 0:
            self.dense.append(torch.equal(self.maker.weight.grad, gradient))

    def configure_optimizers(self):
        return [torch.optim.Adam(self.maker.parameters()), torch.optim.Adam(self.judge.parameters(), lr=0.01)]


@mode(
    18,
    "in a GAN the weights of the other optimizer have gradients too",
    right="a step touches weights, gradients and counts of its own parameters only",
)
def test_a_step_touches_nothing_of_the_other_optimizer():
    torch.manual_seed(3)
    model = Gan()
    updater = MaskUpdater(RigL(every=2, stop=6), DENSITY, allocation="uniform")
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(model, loader())
    assert model.dense == [True] * 6
    assert {row["steps"] for row in updater.sparsifier.state_dict()["params"].values()} == {6}
    assert (recorder.leaks, recorder.state_leaks) == (0, 0)
    assert updater.sparsifier.updates == 3 + 3
    assert set(LIVE) == {name.replace("judge", "net") for name in updater.masks} - {"maker.weight"}
