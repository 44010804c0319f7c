"""MaskUpdater(compute="sparse"): the training of compute="dense", with live weights only."""

import pytest
import torch
from computed import Recorder, close, run
from helpers import DENSITY, loader, net, trainer, weights
from lightning.pytorch import Callback
from torch import nn

from lightning_sparse import DSR, GMP, MEST, SET, GlobalMagnitude, GraNet, MaskUpdater, RigL, SRigL, Static
from lightning_sparse.compute import SparseConv2d, SparseLinear

ALGORITHMS = {
    "static": Static(),
    "set": SET(every=3, stop=1.0),
    "rigl": RigL(every=3, stop=1.0),
    "replace": RigL(every=3, stop=1.0, replace_step=True, regrow_dropped=True),
    "srigl": SRigL(every=3, stop=1.0),
    "mest": MEST(every=3, stop=1.0),
    "gmp": GMP(every=3),
    "global": GlobalMagnitude(rounds=3),
    "dsr": DSR(every=3, stop=1.0),
    "granet": GraNet(every=3),
}
PATH = {"net.0.weight": SparseConv2d, "net.4.weight": SparseLinear, "net.6.weight": SparseLinear}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_is_that_of_dense_layers(name):
    sparse, dense = (run(ALGORITHMS[name], compute) for compute in ("sparse", "dense"))
    close(sparse, dense)
    assert dense[0].moves >= (0 if name == "static" else 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "fused", "amsgrad", "lbfgs"])
@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_training_is_that_of_dense_layers_under_every_optimizer(name, optimizer):
    close(*(run(ALGORITHMS[name], compute, optimizer=optimizer) for compute in ("sparse", "dense")))


@pytest.mark.parametrize("settings", [
    {"accumulate_grad_batches": 2},
    {"accumulate_grad_batches": 5},
    {"gradient_clip_val": 0.05},
    {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_accumulated_and_clipped_gradients_are_those_of_dense_layers(name, settings):
    close(*(run(ALGORITHMS[name], compute, **settings) for compute in ("sparse", "dense")))


class Look(Callback):
    """What layers, parameters and optimizer state are there while it trains."""

    def __init__(self):
        self.kinds, self.sizes, self.names = {}, [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.kinds = {f"{name}.weight": type(module) for name, module in pl_module.named_modules()}
        state = [v.numel() for row in trainer.optimizers[0].state.values() for v in row.values() if v.dim()]
        self.sizes.append((sum(p.numel() for p in pl_module.parameters()), sum(state)))
        self.names.append(list(pl_module.state_dict()))


def test_only_live_weights_exist_while_it_trains_and_the_plain_model_is_back_afterwards():
    updater, model, look = MaskUpdater("static", DENSITY, compute="sparse"), net("adamw"), Look()
    modules, params, names = list(model.modules()), list(model.parameters()), list(model.state_dict())
    fit = trainer([updater, look], max_epochs=1)
    fit.fit(model, loader())
    biases = 6 + 20 + 5
    assert look.sizes == [(532 + biases, 2 * (532 + biases))] * 12
    assert {name: look.kinds[name] for name in PATH} == PATH
    assert look.names == [names] * 12
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
    held = fit.optimizers[0].param_groups[0]["params"]
    assert all(a is b for a, b in zip(params, held, strict=True))
    assert all(fit.optimizers[0].state[p]["exp_avg"].shape == p.shape for p in params)
    for name, mask in updater.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask), name
    assert fit.optimizers[0]._optimizer_state_dict_post_hooks == {}


def test_a_fit_that_fails_leaves_the_plain_model():
    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 5:
                raise KeyError("no more")

    model = net("adamw")
    params = list(model.parameters())
    with pytest.raises(KeyError, match="no more"):
        trainer([MaskUpdater("rigl", DENSITY, compute="sparse"), Fail()], max_epochs=1).fit(model, loader())
    assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
    assert isinstance(model.net[4], nn.Linear)
    assert int(model.net[4].weight.count_nonzero()) == 398


def test_a_second_fit_goes_on_as_dense_layers_do():
    ends = []
    for compute in ("sparse", "dense"):
        updater, model = MaskUpdater(RigL(every=3, stop=1.0), DENSITY, compute=compute), net("adamw")
        recorder = Recorder(updater)
        for _ in range(2):
            trainer([updater, recorder], max_epochs=1, precision="64-true").fit(model, loader())
        ends.append((recorder, weights(model), {}))
    close(*ends)


def test_what_is_done_when_training_has_ended_sees_the_plain_model():
    class Look(Callback):
        def on_fit_end(self, trainer, pl_module):
            self.kinds = [type(pl_module.net[i]) for i in (0, 4, 6)]

    look = Look()
    trainer([look, MaskUpdater("rigl", DENSITY, compute="sparse")], max_epochs=1).fit(net(), loader())
    assert look.kinds == [nn.Conv2d, nn.Linear, nn.Linear]
