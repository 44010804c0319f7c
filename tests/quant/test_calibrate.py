"""Quantization after training, in one call."""

import pytest
import torch
from exported import Residual, image, lively, noise, simulated
from helpers import same, weights
from torch import nn

from lightning_sparse.export import calibrate, convert
from lightning_sparse.quant.quantization import remembered


def test_ranges_are_averages_of_what_batches_show_worked_by_hand():
    # Minima -0.5 and -1.5, maxima 1 and 2.1: on average -1 and 1.55, so the step is 2.55 / 255 and zero the code 100.
    net = nn.Sequential(nn.Linear(2, 1))
    found = calibrate(net, [torch.tensor([[-0.5, 1.0]]), torch.tensor([[-1.5, 2.1]])])
    assert found.ranges["0:in"].scale == pytest.approx(0.01)
    assert found.ranges["0:in"].zero_point == 100


def test_the_module_stays_as_it_is_and_remembers():
    model = lively(Residual()).train()
    before, chance = weights(model), torch.get_rng_state()
    found = calibrate(model, (image(2) for _ in range(3)), {"head": None, "*": 7})
    assert same(before, weights(model))
    assert torch.equal(chance, torch.get_rng_state())
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert remembered(model) is found
    assert set(found.layers) == {"stem", "conv1", "conv2"}
    assert found.left["head.weight"] == "bits= leaves it in float"


def test_what_it_finds_is_what_conversion_computes():
    model = lively(Residual())
    found = calibrate(model, [image()])
    with torch.no_grad():
        answer = convert(model, image())(image())
        torch.testing.assert_close(answer, simulated(model, found, image()), rtol=0, atol=2e-3)


def test_weights_only_need_no_ranges():
    found = calibrate(nn.Sequential(nn.Linear(6, 3)), [noise(2, 6)], 4, act_bits=None)
    assert (found.ranges, found.layers["0"].input, found.layers["0"].bits) == ({}, None, 4)


def test_batches_may_be_tuples_and_dicts():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, shift):
            return self.layer(x + shift)

    one = torch.ones(1, 6)
    found = calibrate(Sum(), [(torch.zeros(1, 6), one), {"x": one, "shift": one}])
    assert found.ranges["layer:in"].scale == pytest.approx(1.5 / 255)


@pytest.mark.parametrize(
    ("model", "batches", "how", "words"),
    [
        (nn.Linear(6, 3), [], {}, "batches is empty"),
        (nn.Linear(6, 3), [noise(2, 6)], {"bits": 9, "act_bits": 2}, "(?s)2 problems.*got 9.*act_bits must be.*got 2"),
        (nn.Linear(6, 3), [noise(2, 6)], {"bits": True}, "bits must be 2 to 8, got True"),
        (nn.Linear(6, 3), [noise(2, 6)], {"exclude": ["conv"]}, "fits no weight"),
        (nn.Linear(6, 3), [torch.full((2, 6), float("nan"))], {}, "NaN or infinity"),
        ("net", [noise(2, 6)], {}, "module must be a torch.nn.Module"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, batches, how, words):
    with pytest.raises(ValueError, match=words):
        calibrate(model, batches, **how)


def test_a_weight_that_is_no_number_is_refused():
    net = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight has NaN"):
        calibrate(net, [noise(2, 6)], act_bits=None)
