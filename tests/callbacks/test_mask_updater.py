"""MaskUpdater in a Trainer: what every run may rely on."""

import pickle

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from helpers import (
    DENSITY,
    LIVE,
    QUIET,
    TOTAL,
    Recorder,
    body,
    digest,
    loader,
    net,
    same,
    state_tensors,
    trainer,
    weights,
)
from torch.nn import functional as F

from lightning_sparse import GMP, SET, MaskUpdater, RigL, SparseMomentum, Static

MOVING = {"rigl": RigL(every=3, stop=1.0), "set": SET(every=3, stop=1.0), "momentum": SparseMomentum(every=3)}


def fitted(callbacks, optimizer="sgd", *, dropout=0.0, data=None, **settings):
    """A model after two epochs, and its Trainer."""
    model, fit = net(optimizer, dropout), trainer(callbacks, **{"max_epochs": 2, **settings})
    fit.fit(model, loader() if data is None else data)
    return model, fit


@pytest.mark.parametrize("algorithm", [Static(), *MOVING.values(), GMP(every=3)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_density_one_is_bit_for_bit_no_callback_at_all(algorithm, optimizer):
    runs = []
    for callbacks in ([], [MaskUpdater(algorithm, 1.0)]):
        model, fit = fitted(callbacks, optimizer, dropout=0.25, data=loader(shuffle=True))
        runs.append((weights(model), state_tensors(fit.optimizers[0]), {"rng": torch.get_rng_state()}))
    assert all(same(left, right) for left, right in zip(*runs, strict=True))


def test_the_global_random_state_is_the_users_at_any_density():
    states = []
    for callbacks in ([], [MaskUpdater(SET(every=2, stop=1.0), DENSITY)]):
        fitted(callbacks, dropout=0.25, data=loader(shuffle=True))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", MOVING)
def test_masks_are_the_same_for_one_big_batch_and_two_accumulated(name):
    updaters = [MaskUpdater(MOVING[name], DENSITY) for _ in range(2)]
    recorders = [Recorder(updater) for updater in updaters]
    fitted([updaters[0], recorders[0]], data=loader(16, 144))
    fitted([updaters[1], recorders[1]], data=loader(8, 144), accumulate_grad_batches=2)
    assert recorders[0].masks == recorders[1].masks
    assert recorders[0].moves >= 3


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "fused", "lbfgs", "mixing", "amsgrad"])
@pytest.mark.parametrize("name", MOVING)
def test_no_forward_sees_a_nonzero_dead_weight_whatever_the_optimizer(name, optimizer, accumulate):
    updater = MaskUpdater(MOVING[name], DENSITY)
    recorder = Recorder(updater)
    fitted([updater, recorder], optimizer, accumulate_grad_batches=accumulate)
    assert (recorder.leaks, recorder.state_leaks) == (0, 0)
    assert recorder.moves >= 3
    assert all(sum(counts.values()) == TOTAL for counts in recorder.counts)


class Grown(pl.Callback):
    """Values of weights, and of their optimizer state, right after they were grown."""

    def __init__(self, updater):
        self.updater, self.found, self.last = updater, [], {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, weight in pl_module.named_parameters():
            mask = self.updater.masks.get(name)
            if mask is not None:
                grown = mask & ~self.last.get(name, mask)
                state = trainer.optimizers[0].state[weight].values()
                tensors = [weight, *(v for v in state if isinstance(v, torch.Tensor) and v.shape == weight.shape)]
                self.found += [value.detach()[grown] for value in tensors if grown.any()]
                self.last[name] = mask.clone()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "mixing", "amsgrad"])
@pytest.mark.parametrize("name", MOVING)
def test_grown_weights_start_at_zero_with_a_clean_optimizer_state(name, optimizer):
    updater = MaskUpdater(MOVING[name], DENSITY)
    grown = Grown(updater)
    fitted([updater, grown], optimizer)
    assert len(grown.found) >= 3 * 2
    assert not any(bool((value != 0).any()) for value in grown.found)


def test_the_last_incomplete_window_of_an_epoch_is_a_step():
    updater = MaskUpdater(RigL(every=1, stop=100), DENSITY)
    fitted([updater], data=loader(4, 20), accumulate_grad_batches=2)  # five batches: three steps an epoch
    assert updater.sparsifier.steps == 6


@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("algorithm", [*MOVING.values(), RigL(every=3, stop=1.0, replace_step=True)], ids=str)
def test_clipping_sees_masked_gradients_and_keeps_weights_sparse(algorithm, kind):
    seen = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):  # gradients of the step before, clipped
            if pl_module.net[4].weight.grad is not None:
                seen.append(int(pl_module.net[4].weight.grad[~self.mask].count_nonzero()))
            self.mask = updater.masks["net.4.weight"]

    updater = MaskUpdater(algorithm, DENSITY)
    recorder = Recorder(updater)
    clip = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": kind}
    fitted([updater, recorder, Watch()], accumulate_grad_batches=2, **clip)
    assert recorder.leaks == 0
    assert recorder.moves >= 3
    assert seen.count(0) == len(seen) >= 6


def test_the_clipped_norm_is_that_of_the_live_gradient():
    updater, norms = MaskUpdater(Static(), DENSITY), []

    class Net(type(net())):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            live = [w.grad * updater.masks.get(name, 1) for name, w in self.named_parameters()]
            expected = torch.stack([g.square().sum() for g in live]).sum().sqrt()
            norms.append((float(expected), float(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1))))

    trainer([updater], max_epochs=1).fit(Net(), loader())
    assert len(norms) == 12
    assert all(abs(a - b) < 1e-5 * a for a, b in norms)


def test_magnitude_init_keeps_the_largest_weights_and_their_values():
    model = net()
    before = weights(model)
    updater = MaskUpdater(Static(), DENSITY, init="magnitude")
    first = First(updater)
    trainer([updater, first], max_steps=1).fit(model, loader())
    for name, k in LIVE.items():
        size = before[name].abs()
        expected = size >= size.flatten().sort(descending=True).values[k - 1]
        assert torch.equal(first.masks[name], expected)
        assert torch.equal(first.weights[name], before[name] * expected)


class First(pl.Callback):
    """Masks and weights as the first forward pass meets them."""

    def __init__(self, updater):
        self.updater = updater

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.masks = {name: mask.clone() for name, mask in self.updater.masks.items()}
            self.weights = weights(pl_module)


@pytest.mark.parametrize("settings", [{"max_epochs": 0}, {"max_epochs": 1, "limit_train_batches": 0}], ids=str)
def test_a_fit_that_trains_nothing_leaves_weights_alone(settings):
    model = net()
    before = weights(model)
    trainer([MaskUpdater("rigl", DENSITY)], **settings).fit(model, loader())
    assert same(weights(model), before)


def test_compiled_inner_modules_have_plain_names_in_the_masks():
    plain, compiled = net(), net()
    compiled.net = torch.compile(compiled.net, backend="eager")
    updaters = [MaskUpdater(RigL(every=3, stop=12), DENSITY) for _ in range(2)]
    for model, updater in zip((plain, compiled), updaters, strict=True):
        trainer([updater], max_epochs=1).fit(model, loader())
    assert list(updaters[1].masks) == list(LIVE)
    assert same(updaters[0].masks, updaters[1].masks)
    assert updaters[1].sparsifier.updates == 4
    bare = {name.replace("_orig_mod.", ""): value for name, value in weights(compiled).items()}
    assert same(weights(plain), bare)


class Foreign(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = body()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "list"])
def test_it_works_in_the_trainer_of_the_other_package(bare):
    updater, model = MaskUpdater(RigL(every=3, stop=9), DENSITY), Foreign()
    fit = pytorch_lightning.Trainer(**{**QUIET, "max_epochs": 1, "callbacks": updater if bare else [updater]})
    fit.fit(model, loader())
    dead = [model.state_dict()[name][~mask] for name, mask in updater.masks.items()]
    assert updater.sparsifier.updates == 3
    assert not any(bool(value.any()) for value in dead)
    assert {name: int(mask.sum()) for name, mask in updater.masks.items()} == LIVE


def test_a_pickled_callback_takes_no_model_along():
    updater = MaskUpdater(Static(), DENSITY)
    fitted([updater])
    copy = pickle.loads(pickle.dumps(updater))
    assert copy.sparsifier is None
    assert b"helpers" not in pickle.dumps(updater), "the module that defines the model is named in the pickle"
    assert digest(copy.masks) == digest(updater.masks)
    assert updater.sparsifier is not None, "the original lost its engine"


def test_hooks_are_gone_after_a_fit_and_after_an_error():
    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise RuntimeError("on purpose")

    _, fit = fitted([MaskUpdater("rigl", DENSITY)])
    broken = trainer([MaskUpdater("rigl", DENSITY), Breaks()], max_epochs=1)
    with pytest.raises(RuntimeError, match="on purpose"):
        broken.fit(net(), loader())
    for optimizer in (fit.optimizers[0], broken.optimizers[0]):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def test_what_stays_dense_unasked_is_named(caplog):
    model = net()
    torch.nn.utils.parametrizations.weight_norm(model.net[4])
    model.net[6].weight.requires_grad_(False)
    with caplog.at_level("INFO"):
        trainer([MaskUpdater(RigL(every=3), DENSITY)], max_epochs=1).fit(model, loader())
    (line,) = [record.message for record in caplog.records if "dense stay" in record.message]
    assert "net.4.parametrizations.weight.original1" in line
    assert "net.6.weight" in line
    assert "net.0.weight" not in line
