"""What QuantizeSparse refuses, with the name, the value and the way out."""

import pytest
import torch
from helpers import ByHand, Net, loader, net, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn

from lightning_sparse import QuantizeSparse
from lightning_sparse.quant.quantization import remembered


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="6 problems") as error:
        QuantizeSparse(9, avg_bits=3, act_bits=3, calibrate_batches=0, at=1.5, exclude="head")
    for text in (
        "bits must be 2 to 8, a number for each glob, or 'auto', got 9",
        "avg_bits is for bits='auto'",
        "act_bits must be 4 to 8, or None for activations in float, got 3",
        "calibrate_batches must be a whole number from 1 on, got 0",
        "at must be epochs (a whole number from 0 on) or a share of the run between 0 and 1, got 1.5",
        "exclude must be a list of globs",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": {"net.*": 1}}, "must be 2 to 8, or None for float"),
        ({"bits": {}}, "names nothing"),
        ({"bits": True}, "got True"),
        ({"bits": "auto"}, "needs a budget: give avg_bits, or max_bytes"),
        ({"bits": "auto", "avg_bits": 4, "max_bytes": 9}, "not both"),
        ({"bits": "auto", "avg_bits": 1}, "avg_bits must be between 2 and 8, got 1"),
        ({"bits": "auto", "max_bytes": 0}, "max_bytes must be a whole number"),
        ({"at": -1}, "at must be epochs"),
        ({"name": 3}, "name must be str, got 3"),
    ],
)
def test_an_argument_that_cannot_be_right(settings, text):
    with pytest.raises(ValueError, match="QuantizeSparse") as error:
        QuantizeSparse(**settings)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"exclude": ["head"]}, r"exclude=\['head'\] fits no weight; there are net.0.weight, net.4.weight"),
        ({"bits": {"conv*": 4}}, r"bits=\['conv\*'\] fits no layer; there are net.0, net.4, net.6"),
        ({"exclude": ["*"]}, "no layer can be quantized"),
    ],
)
def test_globs_are_checked_before_training(settings, text):
    model = net()
    before = model.net[0].weight.clone()
    with pytest.raises(ValueError, match=text):
        trainer([QuantizeSparse(**settings)], max_epochs=1).fit(model, loader())
    assert torch.equal(model.net[0].weight, before)


def test_two_of_them_on_one_weight():
    both = [QuantizeSparse(include=["net.0", "net.4"]), QuantizeSparse(include=["net.4"], name="other")]
    with pytest.raises(MisconfigurationException, match=r"both want net\.4; give each its own include="):
        trainer(both, max_epochs=1).fit(net(), loader())


def test_two_of_them_on_different_weights():
    both = [QuantizeSparse(include=["net.0"]), QuantizeSparse(4, include=["net.4"], name="other")]
    model = net()
    trainer(both, max_epochs=1).fit(model, loader())
    assert [list(each.quantization.layers) for each in both] == [["net.0"], ["net.4"]]
    known = remembered(model)  # what exports take: all of it
    assert {name: layer.bits for name, layer in known.layers.items()} == {"net.0": 8, "net.4": 4}
    assert known.ranges == {**both[0].quantization.ranges, **both[1].quantization.ranges}
    assert list(known.left) == ["net.6.weight"]


def test_two_of_them_with_one_name():
    both = [QuantizeSparse(include=["net.0"]), QuantizeSparse(4, include=["net.4"])]
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(both, max_epochs=1)


def test_weights_with_nan():
    model = net()
    with torch.no_grad():
        model.net[4].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"net\.4\.weight has NaN or infinity"):
        trainer([QuantizeSparse(4, at=0)], max_epochs=1).fit(model, loader())


@pytest.mark.parametrize("evaluate", ["validate", "test"])
def test_evaluation_before_there_are_ranges(evaluate):
    run = trainer([QuantizeSparse()])
    with pytest.raises(MisconfigurationException, match="not quantized yet"):
        getattr(run, evaluate)(net(), loader())


def test_a_model_that_the_ranges_are_not_of():
    quantize = QuantizeSparse()
    run = trainer([quantize], max_epochs=1)
    run.fit(net(), loader())
    with pytest.raises(MisconfigurationException, match="not quantized yet"):
        run.test(net(), loader())


def test_training_data_that_can_be_read_once():
    class Once:
        def __init__(self):
            self.left = list(loader())

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            return self.left.pop()

    with pytest.raises(MisconfigurationException, match="can be read once only"):
        trainer([QuantizeSparse(4, at=0)], max_steps=2).fit(net(), Once())


def test_a_share_of_a_run_without_end():
    with pytest.raises(MisconfigurationException, match="whose length is unknown; give at= in epochs"):
        trainer([QuantizeSparse(4)], max_epochs=-1).fit(net(), loader())


def test_a_step_that_cannot_run_on_its_own():
    class Picky(Net):
        def training_step(self, batch, batch_idx):
            if not self.training:
                raise RuntimeError("train mode only")
            return super().training_step(batch, batch_idx)

    with pytest.raises(MisconfigurationException, match="in evaluation mode, which failed: train mode only"):
        trainer([QuantizeSparse(4, at=0)], max_epochs=1).fit(Picky(), loader())


def test_bits_by_loss_under_manual_optimization():
    model = type("Manual", (ByHand, Net), {})()
    with pytest.raises(MisconfigurationException, match="bits='auto' asks training_step for a loss"):
        trainer([QuantizeSparse("auto", avg_bits=4, at=0)], max_epochs=1).fit(model, loader())


@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_spread_parameters(kind):
    run = trainer([QuantizeSparse()], max_epochs=1)
    run.strategy.__class__ = type(kind, (type(run.strategy),), {})
    with pytest.raises(MisconfigurationException, match=f"QuantizeSparse does not work with {kind}"):
        run.fit(net(), loader())


def test_a_run_that_ends_before_quantized_training_is_calibrated_with_a_warning():
    quantize, model = QuantizeSparse(4, at=3), net()
    with pytest.warns(UserWarning, match="the run ended before quantized training began"):
        trainer([quantize], max_epochs=1).fit(model, loader())
    assert {layer.bits for layer in quantize.quantization.layers.values()} == {4}


class Odd(LightningModule):
    """With all that stays in float."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.lstm, self.head, self.unused = nn.LSTM(8, 8), nn.Linear(8, 9, bias=False), nn.Linear(2, 2)
        self.tied = nn.Linear(8, 9, bias=False)
        self.tied.weight = self.embed.weight

    def training_step(self, batch, batch_idx):
        x = self.embed(batch)
        x, _ = self.attention(x, x, x)
        x, _ = self.lstm(self.normed(x))
        return (self.head(x) + self.tied(x)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(list(self.parameters()), lr=0.1)


def test_what_stays_in_float_is_named_with_its_reason():
    quantize = QuantizeSparse()
    data = torch.utils.data.DataLoader(torch.randint(0, 9, (8, 3)), batch_size=4)
    trainer([quantize], max_epochs=1).fit(Odd(), data)
    left = quantize.quantization.left
    assert list(quantize.quantization.layers) == ["head"]
    assert "an Embedding" in left["embed.weight"]
    assert "attention" in left["attention.in_proj_weight"]
    assert "not called" in left["attention.out_proj.weight"]
    assert "not called" in left["unused.weight"]
    assert "recurrent" in left["lstm.weight_ih_l0"]
    assert any("parametrized" in why for name, why in left.items() if name.startswith("normed"))
