"""What has no form without zeros stays dense with a warning, or is refused by name where the user insists."""

from types import SimpleNamespace

import pytest
import torch
from computed import Recorder, close, run
from helpers import DENSITY, Net, digest, loader, net, same, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.nn.utils import parametrizations

from lightning_sparse import BNChannelPruner, GlobalMagnitude, MaskUpdater, QuantizeSparse, Regularizer, RigL, Static
from lightning_sparse.callbacks.computing.hindrances import hindrances
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.compute import SparseLayer
from lightning_sparse.optim import MaskedAdamW

REFUSED = {"sparse_momentum", "acdc", "str", "l0", "topkast", "srste"}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_algorithms_that_need_dense_layers_are_refused_at_once_and_no_others(name):
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"compute='sparse': {ALGORITHMS[name].__name__} .*give compute='dense'"):
            MaskUpdater(name, 0.5, compute="sparse")
    else:
        assert MaskUpdater(name, 0.5, compute="sparse").compute == "sparse"
    assert MaskUpdater(name, 0.5, compute="auto").compute == "auto"


def test_an_algorithm_that_goes_back_is_refused():
    with pytest.raises(ValueError, match="GlobalMagnitude goes back to the dense weights of an early step"):
        MaskUpdater(GlobalMagnitude(rewind="init"), 0.5, compute="sparse")


@pytest.mark.parametrize("value", ["sparce", None, True, 1])
def test_a_wrong_value_is_named(value):
    with pytest.raises(ValueError, match=f"compute must be 'dense', 'sparse' or 'auto', got {value!r}"):
        MaskUpdater(compute=value)


class Odd(Net):
    """Layers of many kinds; only ``plain`` has a form without zeros."""

    def __init__(self):
        super().__init__("adamw")

        class Own(nn.Linear):
            def forward(self, x):
                return super().forward(x) * 2

        self.net = nn.Sequential()
        self.front = nn.Conv2d(2, 6, 3)
        self.line = nn.Conv1d(6, 6, 9, padding=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.own, self.plain, self.normed = Own(96, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        parametrizations.weight_norm(self.normed)
        self.tied, self.other, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 5)
        self.other.weight = self.tied.weight

    def training_step(self, batch, batch_idx):
        x = self.line(self.front(batch[0]).flatten(2))
        x = self.attention(x, x, x)[0].flatten(1)
        for layer in (self.own, self.plain, self.normed, self.tied, self.other):
            x = torch.relu(layer(x))
        return nn.functional.cross_entropy(self.head(x), batch[1])


def odd(compute):
    torch.manual_seed(3)
    model = Odd()
    updater = MaskUpdater(RigL(every=3, stop=1.0), DENSITY, compute=compute)
    trainer([updater], max_epochs=1, precision="64-true").fit(model, loader())
    return model, digest(updater.masks)


def test_one_warning_names_the_layers_that_stay_dense_and_all_train_as_before():
    with pytest.warns(UserWarning, match="leaves dense") as caught:
        sparse, masks = odd("sparse")
    (text,) = [str(each.message) for each in caught if "leaves dense" in str(each.message)]
    for name, reason in {
        "line.weight": "it is of a Conv1d",
        "attention.in_proj_weight": "it is of a MultiheadAttention",
        "attention.out_proj.weight": "it is of a NonDynamicallyQuantizableLinear",
        "own.weight": "it is of a Own",
        "tied.weight": "it is shared by several modules",
    }.items():
        assert f"{name} ({reason})" in text
    assert "front.weight" not in text
    assert "plain.weight" not in text
    dense, others = odd("dense")
    assert masks == others
    torch.testing.assert_close(weights(sparse), weights(dense), rtol=1e-9, atol=1e-12)


def refused(*words, callbacks=(), model=None, **settings):
    model = net("adamw") if model is None else model
    before = weights(model)
    updater = MaskUpdater("static", DENSITY, compute="sparse")
    with pytest.raises(MisconfigurationException) as caught:
        trainer([updater, *callbacks], max_epochs=1, **settings).fit(model, loader())
    missing = [word for word in ("compute=\"sparse\" cannot be", *words) if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert same(weights(model), before), "weights were touched"


class Lines(Net):
    """Nothing but layers that have no form without zeros."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 4, 36), nn.Flatten(), nn.ConvTranspose1d(4, 5, 1))


def test_a_model_without_any_layer_that_can_be_is_refused():
    refused("net.1.weight is of a Conv1d", "net.3.weight is of a ConvTranspose1d", model=Lines())


@pytest.mark.filterwarnings("ignore:.*the last channels leave.*")
@pytest.mark.parametrize(
    ("callback", "word"),
    [
        (lambda: BNChannelPruner(0.5, criterion="l1", penalty=None), "BNChannelPruner cuts channels"),
        (lambda: QuantizeSparse(8), "QuantizeSparse quantizes"),
        (lambda: Regularizer("l1"), "Regularizer(on='weights')"),
        (lambda: BackboneFinetuning(), "BaseFinetuning"),
    ],
    ids=["pruner", "quantizer", "regularizer", "finetuning"],
)
def test_callbacks_that_need_dense_layers_are_named(callback, word):
    model = net("adamw")
    model.backbone = nn.Identity()
    refused(word, callbacks=[callback()], model=model)


class Stepped(Net):
    """A network with an optimizer of choice."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize("make", [torch.optim.Adafactor, MaskedAdamW])
def test_an_optimizer_that_may_mix_weights_is_named(make):
    refused(f"{make.__name__} may not step each weight by itself", model=Stepped(make))


class Averaging(Net):
    """A network that keeps an average of a part of itself."""

    def __init__(self):
        super().__init__("adamw")
        self.mean = torch.optim.swa_utils.AveragedModel(self.net)
        self.mean.requires_grad_(False)


def test_a_model_that_keeps_an_average_of_itself_is_refused():
    refused("the model keeps an average of itself", model=Averaging())


def inner(model):
    model.net = torch.compile(model.net)
    return model


def itself(model):
    model.net.compile()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiled", [torch.compile, inner, itself])
def test_a_compiled_model_is_refused(compiled):
    refused("the model is compiled", model=compiled(net("adamw")))


class ModelParallelStrategy:
    """Stands for a strategy and a device that no layer without zeros knows."""

    root_device = torch.device("cuda")


def test_a_strategy_and_a_device_are_named():
    trainer = SimpleNamespace(strategy=ModelParallelStrategy(), precision="32-true", optimizers=[], callbacks=[])
    found = hindrances(trainer, nn.Linear(2, 2), Static())
    assert len(found) == 2
    assert found[0].startswith("ModelParallelStrategy is not supported")
    assert found[1] == "not supported on the device cuda"


def test_a_precision_without_kernels_is_named():
    refused("precision='16-true'", precision="16-true", model=net("adamw").half())


def test_auto_is_dense_with_a_warning_where_the_run_excludes_it():
    updater, seen = MaskUpdater("static", DENSITY, compute="auto"), []

    class Look(Recorder):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.extend(module for module in pl_module.modules() if isinstance(module, SparseLayer))

    with pytest.warns(UserWarning, match="all layers are computed dense: Regularizer"):
        trainer([updater, Regularizer("l1"), Look(updater)], max_epochs=1).fit(net(), loader())
    assert seen == []


def test_density_one_has_nothing_to_leave_out():
    ends = []
    for compute in ("sparse", "dense"):
        model = net("adamw")
        trainer([MaskUpdater("static", 1.0, compute=compute)], max_epochs=1).fit(model, loader())
        ends.append(weights(model))
    assert same(*ends)


def test_the_comparison_that_these_tests_rest_on_can_fail():
    with pytest.raises(AssertionError):
        close(run(RigL(every=3, stop=1.0), "sparse"), run(RigL(every=4, stop=1.0), "dense"))
