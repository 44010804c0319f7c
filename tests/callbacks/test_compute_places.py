"""compute="sparse" where it meets loops, precisions, hooks, loggers and code of the user's own."""

import copy
from functools import partial

import pytest
import torch
from computed import Recorder, close, run
from helpers import DENSITY, ByHand, Net, loader, net, same, samples, state_tensors, trainer, weights
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_sparse import GMP, DensityLogger, MaskUpdater, RigL
from lightning_sparse.compute import SparseEmbedding, SparseLayer, SparseLinear

RIGL = RigL(every=3, stop=1.0)


def both(make, algorithm=RIGL, *, callbacks=lambda: (), include=None, data=None, **settings):
    """The same run twice, sparse and dense: as :func:`computed.close` compares them."""
    ends = []
    for compute in ("sparse", "dense"):
        torch.manual_seed(1)
        updater, model = MaskUpdater(algorithm, DENSITY, compute=compute, include=include), make()
        recorder = Recorder(updater)
        fit = trainer([updater, recorder, *callbacks()], **{"max_epochs": 2, "precision": "64-true", **settings})
        fit.fit(model, loader() if data is None else data)
        state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
        ends.append((recorder, weights(model), state, updater, model, fit))
    return ends


class Manual(ByHand, Net):
    """Its optimizer is stepped by hand."""


class Skipping(Manual):
    """Every fourth gradient is thrown away."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        if batch_idx % 4 != 1:
            optimizer.step()


@pytest.mark.parametrize("kind", [Manual, Skipping])
@pytest.mark.parametrize("algorithm", [RigL(every=2, stop=40), GMP(every=3, stop=15)], ids=["rigl", "gmp"])
def test_loops_by_hand_train_as_with_dense_layers(kind, algorithm):
    close(*both(lambda: kind("adamw"), algorithm))


class Twice(Net):
    """One layer is used twice in a pass, and its weight is looked at by a penalty."""

    def __init__(self):
        super().__init__("adamw")
        self.middle = nn.Linear(20, 20)

    def training_step(self, batch, batch_idx):
        x = F.relu(self.net[4](self.net[:4](batch[0])))
        x = F.relu(self.middle(F.relu(self.middle(x))))
        return F.cross_entropy(self.net[6](x), batch[1]) + 1e-2 * self.middle.weight.square().sum()


def test_a_layer_used_twice_and_read_by_a_penalty_trains_as_a_dense_one():
    sparse, dense = both(Twice)
    close(sparse, dense)
    assert dense[0].moves >= 3


class Functional(Net):
    """A layer is used by its weight alone."""

    def training_step(self, batch, batch_idx):
        x = F.linear(self.net[:4](batch[0]), self.net[4].weight, self.net[4].bias)
        return F.cross_entropy(self.net[6](F.relu(x)), batch[1])


def test_code_that_takes_the_weight_itself_computes_and_grows_the_same():
    sparse, dense = both(lambda: Functional("adamw"))
    close(sparse, dense)
    assert dense[0].moves >= 3


class Keeping(Net):
    """It keeps its losses, and with them the graphs of former steps."""

    def training_step(self, batch, batch_idx):
        self.losses = [*getattr(self, "losses", ())[-3:], super().training_step(batch, batch_idx)]
        return self.losses[-1]


def test_graphs_of_former_steps_that_are_kept_do_no_harm_when_counts_change():
    close(*both(lambda: Keeping("adamw"), GMP(every=3)))


class Thawing(Net):
    """A layer is frozen at first."""

    def on_train_start(self):
        pass

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 6:
            self.net[4].requires_grad_(True)


def thawing():
    model = Thawing("adamw")
    model.net[4].requires_grad_(False)
    return model


def test_a_layer_that_is_unfrozen_joins_those_without_zeros():
    kinds = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kinds.append(type(pl_module.net[4]))

    sparse, dense = both(thawing, callbacks=lambda: [Look()])
    close(sparse, dense)
    assert kinds[:24] == [nn.Linear] * 7 + [SparseLinear] * 17


def test_two_callbacks_share_a_model():
    ends = []
    for compute in ("sparse", "dense"):
        model = net("adamw")
        first = MaskUpdater(RIGL, 0.5, include=["net.0"], compute=compute, name="a")
        second = MaskUpdater(GMP(every=4), 0.2, include=["net.4", "net.6"], compute=compute, name="b")
        recorders = [Recorder(first), Recorder(second)]
        trainer([first, second, *recorders], max_epochs=2, precision="64-true").fit(model, loader())
        ends.append(([each.masks for each in recorders], weights(model)))
    assert ends[0][0] == ends[1][0]
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-9, atol=1e-12)


class Words(Net):
    """A table of words, of which the first is padding, and a layer."""

    def __init__(self):
        super().__init__("adamw")
        self.net = nn.Sequential()
        self.table, self.head = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 5)

    def training_step(self, batch, batch_idx):
        ids = (batch[0].flatten(1)[:, :10].abs() * 15).long().clamp(max=29)
        return F.cross_entropy(self.head(self.table(ids).mean(1)), batch[1])


def test_an_embedding_that_is_asked_for_trains_as_a_dense_one():
    kinds = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kinds.append(type(pl_module.table))

    sparse, dense = both(Words, include=["table", "head"], callbacks=lambda: [Look()])
    close(sparse, dense)
    assert kinds == [SparseEmbedding] * 24 + [nn.Embedding] * 24


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
            if state:
                counted = [*pl_module.parameters(), *grads, *state]
                found.append([sum(t.nbytes for t in counted), sum(b.nbytes for b in pl_module.buffers())])

    torch.manual_seed(1)
    updater = MaskUpdater("static", 0.05, allocation="uniform", compute=compute)
    trainer([updater, Count()], max_epochs=1).fit(Wide(), DataLoader(samples(8), batch_size=4))
    return found[-1]


def test_memory_at_95_percent_is_less_than_0_15_of_dense():
    (ours, places), (theirs, _) = held("sparse"), held("dense")
    assert ours / theirs < 0.06
    assert (ours + places) / theirs < 0.15
