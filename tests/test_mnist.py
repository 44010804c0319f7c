"""On real MNIST, what a user is here for: sparse networks that still know their digits."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import trainer
from lightning.pytorch import seed_everything
from torch.nn import functional as F

from lightning_sparse import MaskUpdater

pytestmark = pytest.mark.slow
SPEC = importlib.util.spec_from_file_location("mnist", Path(__file__).parents[1] / "examples" / "mnist.py")
mnist = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mnist)
LIVE = 13_310  # 5 % of 266,200


@pytest.fixture(scope="module")
def data():
    module = mnist.MNIST()
    module.setup("fit")
    return module


def fit(model, data, epochs, *callbacks):
    trainer(list(callbacks), max_epochs=epochs, limit_val_batches=0).fit(model, data.train_dataloader())
    return model


@torch.no_grad()
def accuracy(model, data):
    hits = [(model.net(images).argmax(1) == labels).float().mean() for images, labels in data.test_dataloader()]
    return float(torch.stack(hits).mean())


def nonzero(model):
    return sum(int(w.count_nonzero()) for w in model.parameters() if w.ndim > 1)


def test_a_trained_network_is_made_sparse_by_magnitude_and_recovers(data):
    seed_everything(0, verbose=False)
    model = fit(mnist.LeNet(), data, 1)
    dense = accuracy(model, data)
    weights = torch.cat([w.detach().flatten() for w in model.parameters() if w.ndim > 1]).abs()
    least = weights.topk(LIVE).values[-1]
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    updater = MaskUpdater("static", density=0.05, init="magnitude", allocation="global")
    fit(model, data, 1, updater)
    assert all(torch.equal(mask, before[name].abs() >= least) for name, mask in updater.masks.items())
    assert nonzero(model) == LIVE
    pruned = mnist.LeNet()
    pruned.load_state_dict({name: w * updater.masks.get(name, torch.ones_like(w)) for name, w in before.items()})
    assert accuracy(model, data) > accuracy(pruned, data) + 0.02  # fine-tuning is what brings it back
    assert accuracy(model, data) > dense - 0.02


def test_growth_by_gradient_beats_a_mask_that_stays(data):
    found = {}
    for name in ("static", "rigl"):
        seed_everything(0, verbose=False)
        updater = MaskUpdater(name, density=0.02)
        model = fit(mnist.LeNet(), data, 2, updater)
        assert nonzero(model) == 5_324
        found[name] = accuracy(model, data)
    assert found["rigl"] > found["static"] > 0.9


def test_the_loss_of_a_sparse_network_falls(data):
    seed_everything(0, verbose=False)
    images, labels = next(iter(data.test_dataloader()))
    model = fit(mnist.LeNet(), data, 1, MaskUpdater("sparse_momentum", density=0.05))
    with torch.no_grad():
        after, before = (float(F.cross_entropy(m.net(images), labels)) for m in (model, mnist.LeNet()))
    assert after < 0.3 < before


def test_layers_without_zeros_learn_what_dense_layers_learn(data):
    masks, found = {}, {}
    for compute in ("sparse", "dense"):
        for precision in ("64-true", "32-true"):
            seed_everything(0, verbose=False)
            model, updater = mnist.LeNet(), MaskUpdater("rigl", density=0.05, compute=compute)
            settings = {"max_epochs": 1, "limit_val_batches": 0, "precision": precision}
            trainer([updater], **settings).fit(model, data.train_dataloader())
            masks[compute, precision], found[compute, precision] = updater.masks, accuracy(model.float(), data)
            assert updater.sparsifier.updates >= 3
    ours, theirs = masks["sparse", "64-true"], masks["dense", "64-true"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found["sparse", "64-true"] == pytest.approx(found["dense", "64-true"], abs=1e-3)
    assert found["sparse", "32-true"] == pytest.approx(found["dense", "32-true"], abs=1e-2)
