"""compute="sparse" under backward passes that masks must not grow by, and what a model keeps of its own layers."""

import pytest
import torch
import torch.nn.functional as F
from computed import both, close
from helpers import DENSITY, Net, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch.utils.checkpoint import checkpoint

from lightning_sparse import MaskUpdater, RigL
from lightning_sparse.compute import SparseLayer

RIGL = RigL(every=3, stop=1.0)


class Attacked(Net):
    """Trains on inputs that were moved along the gradient that they have."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.requires_grad_()
        loss = F.cross_entropy(self.net(x), y)
        (slope,) = torch.autograd.grad(loss, x, retain_graph=True)
        return loss + F.cross_entropy(self.net((x + 0.1 * slope.sign()).detach()), y)


class Steepness(Net):
    """Looks at the gradient's size before the backward pass."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        weights = [p for p in self.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        self.steepness = sum(float(slope.norm()) for slope in slopes if slope is not None)
        return loss


class EverySecond(Net):
    """Steps with every second batch; the gradient of the others is thrown away."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class Late(Net):
    """Manual optimization whose gradients are zeroed between the forward and the backward pass."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad(set_to_none=batch_idx % 3 == 0)
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()


class Checkpointed(Net):
    """Computes its forward pass twice, for memory."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(checkpoint(self.net, batch[0], use_reentrant=False), batch[1])


CASES = [(kind, 1) for kind in (Attacked, Steepness, EverySecond, Late, Checkpointed)] + [(Attacked, 2), (Steepness, 2)]


@pytest.mark.parametrize(("kind", "windows"), CASES)
def test_masks_grow_by_the_gradient_of_the_step_and_no_other(kind, windows):
    ours, theirs = both(lambda: kind("adamw"), RIGL, accumulate_grad_batches=windows)
    assert ours[0].moves > 1
    close(ours, theirs)


def test_weights_that_a_model_keeps_in_a_list_stay_dense():
    class Kept(Net):
        def __init__(self):
            super().__init__("adamw")
            self.others = [self.net[4].weight]

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert pl_module.others[0].numel() == pl_module.net[4].weight.numel() > 0
            assert isinstance(pl_module.net[6], SparseLayer)

    fit = trainer([MaskUpdater(RIGL, DENSITY, compute="sparse"), Look()], max_steps=2)
    with pytest.warns(UserWarning, match=r"net.4.weight \(it is kept in a list or dict of the model's own\)"):
        fit.fit(Kept(), loader())


def test_several_updaters_of_one_lbfgs_are_refused():
    updaters = [MaskUpdater(RIGL, DENSITY, compute="sparse", include=[f"net.{i}.weight"], name=str(i)) for i in (4, 6)]
    with pytest.raises(MisconfigurationException, match="LBFGS has one state for the layers of several MaskUpdaters"):
        trainer(updaters, max_steps=2).fit(Net("lbfgs"), loader())


def test_what_is_noted_on_a_layer_is_there_before_during_and_after():
    class Note(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            layer = pl_module.net[4]
            assert layer._scale == 2
            layer.seen = getattr(layer, "seen", 0) + 2

    model = Net("adamw")
    model.net[4]._scale = 2
    trainer([MaskUpdater(RIGL, DENSITY, compute="sparse"), Note()], max_steps=3).fit(model, loader())
    assert (model.net[4].seen, model.net[4]._scale) == (6, 2)
