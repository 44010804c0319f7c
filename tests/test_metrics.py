"""Metrics against counts made by hand and published numbers."""

import json
from pathlib import Path

import pytest
import torch

from lightning_sparse.metrics import Density, NonzeroDensity, TrainingFLOPs

GOLDEN = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text())["training_flops_relative_to_dense"]
MASKS = {"a": torch.tensor([[1, 0, 0], [0, 1, 0]]).bool(), "b": torch.tensor([1, 1, 1, 0]).bool()}


def test_density_counts_live_weights_of_all_layers_together():
    metric = Density()
    metric.update(MASKS)
    assert float(metric.compute()) == 0.5  # 2 of 6 and 3 of 4: not the mean of the layers' shares


def test_a_later_update_takes_the_place_of_an_earlier_one():
    metric = Density()
    metric.update(MASKS)
    metric.update({"a": MASKS["a"]})
    assert float(metric.compute()) == pytest.approx(1 / 3)
    assert float(metric(MASKS)) == 0.5
    assert float(metric.compute()) == 0.5


def test_nonzero_density_counts_what_is_not_zero():
    weight = torch.tensor([[0.5, 0.0, -0.0], [1e-30, float("nan"), 0.0]], requires_grad=True)
    metric = NonzeroDensity()
    metric.update({"w": weight})
    assert float(metric.compute()) == 0.5


def test_reset_forgets():
    metric = TrainingFLOPs()
    metric.update(1.0, 2.0)
    metric.reset()
    metric.update(3.0, 4.0)
    assert float(metric.compute()) == 9.0


@pytest.mark.parametrize("density", GOLDEN["rigl_100"])
def test_rigl_with_a_dense_gradient_every_hundred_steps_costs_what_was_published(density):
    metric = TrainingFLOPs(share=True)
    for step in range(101):
        metric.update(float(density), 1.0, dense_gradient=step == 100)
    assert float(metric.compute()) == pytest.approx(GOLDEN["rigl_100"][density], abs=5e-5)


@pytest.mark.parametrize("density", GOLDEN["snfs"])
def test_sparse_momentum_pays_a_dense_gradient_at_every_step(density):
    metric = TrainingFLOPs(share=True)
    for _ in range(7):
        metric.update(float(density), 1.0, dense_gradient=True)
    assert float(metric.compute()) == pytest.approx(GOLDEN["snfs"][density], abs=5e-5)


def test_a_static_mask_costs_its_share_and_a_dense_model_all():
    for share in (0.1, 1.0):
        metric = TrainingFLOPs(share=True)
        metric.update(share * 7e9, 7e9)
        assert float(metric.compute()) == pytest.approx(share)


def test_flops_of_a_long_run_do_not_drown_in_rounding():
    metric = TrainingFLOPs()
    metric.update(2.0**60, 2.0**60)
    metric.update(1024.0, 1024.0)
    assert float(metric.compute()) - 3 * 2.0**60 == 3 * 1024.0
