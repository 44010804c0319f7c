"""compute="sparse" where it meets precisions, optimizers, hooks, loggers and code that copies or loads."""

import copy
from functools import partial

import pytest
import torch
from computed import both, close, run
from helpers import DENSITY, Net, loader, net, same, samples, trainer, weights
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_sparse import DensityLogger, MaskUpdater, Regularizer, RigL
from lightning_sparse.compute import SparseLayer, SparseLinear

RIGL = RigL(every=3, stop=1.0)


class Stepped(Net):
    """A network with an optimizer of choice."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=0.01)


@pytest.mark.parametrize("name", ["ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"])
def test_other_optimizers_step_values_as_they_step_dense_weights(name):
    close(*both(lambda: Stepped(getattr(torch.optim, name))))


OPTIONS = [{"foreach": True}, {"maximize": True}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_optimizers_work(options):
    close(*both(lambda: Stepped(partial(torch.optim.SGD, weight_decay=0.01, **options))))


def test_numbers_of_half_the_size_train():
    found = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            found.append(pl_module.net[4].values.dtype)

    updater, model = MaskUpdater(RIGL, DENSITY, compute="sparse"), net("adamw").bfloat16()
    before = weights(model)["net.6.bias"]
    trainer([updater, Look()], max_epochs=1, precision="bf16-true").fit(model, loader())
    assert found == [torch.bfloat16] * 12
    assert all(bool(value.isfinite().all()) for value in weights(model).values())
    assert not torch.equal(weights(model)["net.6.bias"], before)


def test_mixed_precision_ends_near_dense_layers():
    """bfloat16 has eight bits: masks that depend on gradients may differ, and a fixed mask must not."""
    runs = [run("static", compute, precision="bf16-mixed", optimizer="sgd") for compute in ("sparse", "dense")]
    assert runs[0][0].masks == runs[1][0].masks
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], rtol=0.05, atol=0.01)
        assert value.dtype == torch.float32


def test_hooks_work_on_the_layer_and_can_be_taken_off_again():
    model, calls = net("adamw"), []
    handle = model.net[4].register_forward_hook(lambda module, args, out: calls.append(type(module)))

    class Remove(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                handle.remove()

    trainer([MaskUpdater(RIGL, DENSITY, compute="sparse"), Remove()], max_epochs=1).fit(model, loader())
    assert calls == [SparseLinear] * 3
    assert len(model.net[4]._forward_hooks) == 0


def test_attributes_of_the_module_are_there_on_the_layer():
    found = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for i, names in ((0, ("in_channels", "kernel_size", "note")), (4, ("in_features", "out_features"))):
                found.update({name: getattr(pl_module.net[i], name) for name in names})

    model = net()
    model.net[0].note = "mine"
    trainer([MaskUpdater(RIGL, DENSITY, compute="sparse"), Look()], max_epochs=1).fit(model, loader())
    assert found == {"in_channels": 2, "kernel_size": (3, 3), "note": "mine", "in_features": 96, "out_features": 20}


def test_a_penalty_on_activations_works_beside_it():
    sparse, dense = both(lambda: net("adamw"), callbacks=lambda: [Regularizer("l1", 0.1, on="activations")])
    close(sparse, dense)
    (plain, _) = both(lambda: net("adamw"))
    assert not same(plain[1], sparse[1])


def logged(compute, tmp_path):
    torch.manual_seed(1)
    seen = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.update({key: float(value) for key, value in trainer.callback_metrics.items()})

    callbacks = [MaskUpdater(RIGL, DENSITY, compute=compute), DensityLogger(every=1), Keep()]
    trainer(callbacks, max_epochs=1, precision="64-true", log_every_n_steps=1).fit(net("adamw"), loader())
    return seen, callbacks[1].watch.flops


def test_the_density_logger_sees_what_it_sees_of_dense_layers(tmp_path):
    (values, flops), (expected, counted) = (logged(compute, tmp_path) for compute in ("sparse", "dense"))
    assert values == pytest.approx(expected)
    assert {"density", "nonzero_density", "flops_share"} <= set(expected)
    assert flops == counted
    assert len(counted) == 3


def test_copies_and_weights_that_are_loaded_in_mid_fit_keep_the_masks():
    copies = []

    class Swap(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 5:
                copies.append(copy.deepcopy(pl_module.net))
                dense = {name: torch.ones_like(value) for name, value in pl_module.state_dict().items()}
                pl_module.load_state_dict(dense)
                assert all(float(layer.values.detach().sum()) == layer.live for layer in layers(pl_module))

    def layers(module):
        return [each for each in module.modules() if isinstance(each, SparseLayer)]

    updater, model = MaskUpdater("static", DENSITY, compute="sparse"), net("sgd")
    trainer([updater, Swap()], max_epochs=1).fit(model, loader())
    assert len(layers(copies[0])) == 3
    for name, mask in updater.masks.items():
        assert same({name: model.get_parameter(name) != 0}, {name: mask})


class Frozen(Net):
    """Weights in channels_last; one is frozen on the way; a buffer of its own."""

    def __init__(self):
        super().__init__("adamw")
        self.net[0].to(memory_format=torch.channels_last)
        self.register_buffer("count", torch.zeros(()))

    def on_train_batch_start(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx < 5)


def test_what_a_parameter_is_beside_its_numbers_comes_back():
    buffers = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            buffers.append([name for name, _ in pl_module.named_buffers()])

    sparse, dense = both(Frozen, callbacks=lambda: [Look()])
    close(sparse, dense)
    for _, _, _, _, model, _ in (sparse, dense):
        weight = model.net[0].weight
        assert not weight.requires_grad
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert buffers == [["count"]] * 48


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_state_that_an_optimizer_has_saved_in_mid_fit_can_be_loaded_in_mid_fit(optimizer):
    class Reload(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 5:
                (stepping,) = trainer.optimizers
                saved = copy.deepcopy(stepping.state_dict())
                stepping.zero_grad()
                for row in stepping.state.values():
                    for value in row.values():
                        if isinstance(value, torch.Tensor):
                            value.zero_()
                stepping.load_state_dict(saved)

    ends = [run(RIGL, "sparse", optimizer=optimizer, callbacks=more) for more in ([Reload()], [])]
    assert ends[0][0].masks == ends[1][0].masks
    assert same(ends[0][1], ends[1][1])


class Wide(Net):
    """An MLP whose weights are nearly all there is."""

    def __init__(self):
        super().__init__("adamw")
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(72, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 5))


def held(compute):
    """Bytes of parameters, gradients, optimizer state and places of layers, after a step."""
    found = []

    class Count(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            state = [v for row in optimizer.state.values() for v in row.values() if isinstance(v, torch.Tensor)]
            layers = [module for module in pl_module.modules() if isinstance(module, SparseLayer)]
            places = [t for layer in layers for t in layer.index]
            if state:
                counted = [*pl_module.parameters(), *grads, *state]
                found.append([sum(t.nbytes for t in counted), sum(t.nbytes for t in places)])

    torch.manual_seed(1)
    updater = MaskUpdater("static", 0.05, allocation="uniform", compute=compute)
    trainer([updater, Count()], max_epochs=1).fit(Wide(), DataLoader(samples(8), batch_size=4))
    return found[-1]


def test_memory_at_95_percent_is_less_than_0_15_of_dense():
    (ours, places), (theirs, _) = held("sparse"), held("dense")
    assert ours / theirs < 0.06
    assert (ours + places) / theirs < 0.15
