"""What cannot be converted is refused, with all that is wrong and the way out."""

import pytest
import torch
from exported import Residual, image, known, lively
from torch import nn

from lightning_sparse.export import convert
from lightning_sparse.quant.quantization import Layer, Quantization, Range


def linear():
    return nn.Sequential(nn.Linear(2, 1))


def test_a_module_that_was_not_quantized_is_told_how_to():
    with pytest.raises(ValueError, match=r"Sequential was not quantized.*QuantizeSparse.*calibrate\(module, batches"):
        convert(linear(), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (Quantization({"0": Layer("0", 8), "head": Layer("head", 8)}), "no weight head.weight"),
        (Quantization({"0": Layer("0", 8, norm="7")}), "no 7, which was folded into 0"),
        (Quantization({"0": Layer("0", 8, input="0:in")}, {"9:in": Range(1.0, 0)}), "no range is known of 0:in"),
    ],
)
def test_a_quantization_of_another_model_is_refused(quantization, words):
    with pytest.raises(ValueError, match=words):
        convert(linear(), torch.ones(1, 2), quantization)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["conv1.weight", "head.bias", "bn1.running_var", "bn2.weight"])
def test_what_is_no_number_is_refused_by_name(place, bad):
    model = lively(Residual())
    quantization = known(model, image())
    model.state_dict()[place].flatten()[0] = bad
    layer = {"bn1.running_var": "conv1", "bn2.weight": "conv2", "head.bias": "head"}.get(place, "conv1.weight")
    if place == "bn1.running_var" and bad == float("inf"):
        pytest.skip("an infinite variance is a channel that is constant")
    with pytest.raises(ValueError, match=rf"{layer}\b.*NaN"):
        convert(model, image(), quantization)


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        ("net", torch.ones(1, 2), "module must be a torch.nn.Module, got 'net'"),
        (linear(), None, "example_inputs is None"),
        (linear(), torch.ones(1, 3), "cannot be called with example_inputs: .*mat1 and mat2"),
        (linear(), {"x": torch.ones(1, 2)}, "cannot be called with example_inputs"),
        (nn.ModuleList([nn.Linear(2, 1)]), torch.ones(1, 2), "ModuleList has no forward"),
        (nn.Sequential(nn.LazyLinear(1)), torch.ones(1, 2), "0.weight has no values yet"),
        (nn.Sequential(nn.Linear(2, 1, device="meta")), torch.ones(1, 2), "0.weight has no values yet"),
    ],
)
def test_wrong_arguments_are_refused(module, inputs, words):
    with pytest.raises(ValueError, match=words):
        convert(module, inputs, Quantization({"0": Layer("0", 8)}))


def test_another_target_is_refused():
    with pytest.raises(ValueError, match="target must be 'onnx' or 'executorch', got 'tflite'"):
        convert(linear(), torch.ones(1, 2), Quantization({}), target="tflite")


def test_a_module_that_answers_otherwise_each_time_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(2, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x) + self.calls

    with pytest.raises(ValueError, match="two answers to one question"):
        convert(Counting(), torch.ones(1, 2), Quantization({"layer": Layer("layer", 8)}))


def test_a_module_that_cannot_be_copied_is_refused():
    model = linear()
    model.open = (_ for _ in ())  # a generator
    with pytest.raises(ValueError, match=r"cannot be copied: .*generator"):
        convert(model, torch.ones(1, 2), Quantization({"0": Layer("0", 8)}))
