"""Regularizer in a Trainer: what is penalized, and how it goes with masks."""

import pytest
import torch
from helpers import DENSITY, LIVE, Net, Recorder, net, same, state_tensors, weights
from penalized import close, fitted, idle, moved, scaled
from torch import nn

from lightning_sparse import GMP, MaskUpdater, Regularizer, RigL, SparseMomentum, Static


class Normed(Net):
    """With BatchNorm, whose gammas can be told apart."""

    def __init__(self, optimizer="sgd"):
        super().__init__(optimizer)
        self.net.insert(1, nn.BatchNorm2d(6))


def normed(optimizer="sgd"):
    torch.manual_seed(1)
    return Normed(optimizer)


def test_gammas_alone_are_moved():
    def extra(model):
        return 0.01 * model.net[1].weight.abs().sum()

    by_hand = normed()
    plain = by_hand.training_step
    by_hand.training_step = lambda batch, batch_idx: plain(batch, batch_idx) + extra(by_hand)
    model, _ = fitted([Regularizer("l1", 0.01, on="gammas")], normed(), precision="64-true")
    fitted([], by_hand, precision="64-true")
    close(model, by_hand, rtol=1e-7, atol=1e-9)


def test_gammas_become_exact_zeros_by_the_proximal_operator():
    model, _ = fitted([Regularizer("l1", 10.0, on="gammas", proximal=True)], normed())
    assert not bool(model.net[1].weight.any())
    assert bool(model.net[0].weight.all())


def test_each_glob_has_its_strength():
    model, _ = fitted([Regularizer("l1", {"net.4": 0.01, "*": 0.0})], idle())
    moved(model, 0.01, 12, on=["net.4.weight"])


def test_two_regularizers_of_the_same_weights_add_up():
    both = [Regularizer("l1", 0.006, name="a"), Regularizer("l1", 0.004, name="b")]
    model, _ = fitted(both, idle())
    moved(model, 0.01, 12)


def test_frozen_weights_stay():
    model = idle()
    model.net[4].requires_grad_(False)
    fitted([Regularizer("l1", 0.01)], model)
    moved(model, 0.01, 12, on=["net.0.weight", "net.6.weight"])



MOVING = {
    "static": Static(),
    "rigl": RigL(every=3, stop=1.0),
    "regrow": RigL(every=3, stop=1.0, regrow_dropped=True),
    "momentum": SparseMomentum(every=3),
    "gmp": GMP(every=3, stop=9),
}


@pytest.mark.parametrize("settings", [{}, {"proximal": True}, {"on": "activations"}], ids=str)
@pytest.mark.parametrize("name", MOVING)
def test_masks_and_penalty_are_the_same_in_either_order_and_nothing_dead_lives(name, settings):
    runs = []
    for turn in (1, -1):
        updater, regularizer = MaskUpdater(MOVING[name], DENSITY), Regularizer("l1", 1e-2, **settings)
        recorder = Recorder(updater)
        model, fit = fitted([*[updater, regularizer][::turn], recorder], net("adamw"))
        assert (recorder.leaks, recorder.state_leaks) == (0, 0)
        assert recorder.moves >= 3 or name == "static"
        runs.append((weights(model), updater.masks, state_tensors(fit.optimizers[0])))
    assert all(same(left, right) for left, right in zip(*runs, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "fused", "mixing"])
@pytest.mark.parametrize("turn", [1, -1])
def test_masks_hold_under_a_scaler_too(turn, optimizer):
    updater = MaskUpdater(RigL(every=3, stop=1.0), DENSITY)
    recorder = Recorder(updater)
    both = [updater, Regularizer("elastic", 1e-2)][::turn]
    fitted([*both, recorder], net(optimizer), max_epochs=2, **scaled(growth_interval=5))
    assert (recorder.leaks, recorder.state_leaks) == (0, 0)
    assert all(counts == LIVE for counts in recorder.counts)
