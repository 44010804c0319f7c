"""Layers that are unfrozen in a run that goes back to an early state."""

import pytest
import torch
from helpers import DENSITY, loader, net, same, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning

from lightning_sparse import GlobalMagnitude, MaskUpdater

TICKET = GlobalMagnitude(rounds=2, stop=18, rewind="init")  # pruned after 9 and 18 of 24 steps


class Thaw(Callback):
    """The convolution is frozen until the seventh step; the optimizer has it all the time."""

    def __init__(self):
        self.pages = []

    def on_fit_start(self, trainer, pl_module):
        pl_module.net[0].requires_grad_(False)

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.net[0].requires_grad_(trainer.global_step >= 6)
        self.pages.append(weights(pl_module))


class Unfreeze(BaseFinetuning):
    """Lightning's own way: the convolution joins in the second epoch, and the optimizer gets it then."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.1)


def run(other, exclude=(), algorithm=TICKET):
    model, updater = net("adamw"), MaskUpdater(algorithm, DENSITY, exclude=exclude)
    if isinstance(other, Unfreeze):
        rest = list(model.net[4:].parameters())
        model.configure_optimizers = lambda: torch.optim.SGD(rest, lr=0.1)
    trainer([other, updater], max_epochs=2).fit(model, loader())
    return model, updater


@pytest.mark.parametrize("other", [Thaw, Unfreeze])
def test_layers_that_would_join_are_refused_with_the_way_out(other):
    text = r"net\.0\.weight can be trained now, .* at step 0, .* rewind=None, or exclude=\['net\.0\.weight'\]"
    with pytest.raises(MisconfigurationException, match=text):
        run(other())


def test_an_optimizer_that_has_got_more_parameters_cannot_go_back():
    with pytest.raises(ValueError, match=r"was a layer unfrozen meanwhile\?\); leave rewind=None"):
        run(Unfreeze(), exclude=["net.0"])


@pytest.mark.parametrize("other", [Thaw, Unfreeze])
def test_without_rewinding_they_join(other):
    _, updater = run(other(), algorithm=GlobalMagnitude(rounds=2, stop=18))
    assert updater.masks.keys() == {"net.0.weight", "net.4.weight", "net.6.weight"}


def test_layers_that_stay_dense_go_back_to_what_they_were_when_frozen():
    thaw = Thaw()
    model, updater = run(thaw, exclude=["net.0"])
    assert updater.sparsifier.rewinds == 2
    first, before, after = (thaw.pages[step] for step in (0, 8, 9))
    dense = {name for name in first if name not in updater.masks}
    assert not torch.equal(before["net.0.weight"], first["net.0.weight"]), "it was not trained: the test says nothing"
    assert same({name: after[name] for name in dense}, {name: first[name] for name in dense})
    assert not torch.equal(weights(model)["net.0.weight"], first["net.0.weight"])
