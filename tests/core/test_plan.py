"""The dry run: totals, the table, and every refusal."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sparse import RigL, SparseMomentum
from lightning_sparse.algorithms import GMP, SET, Static
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.patterns import Unstructured
from lightning_sparse.core.plan import LayerPlan, count, make_plan, plan
from lightning_sparse.core.select import select

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
TRAINING = GOLDEN["training_flops_relative_to_dense"]


def net():
    """240, 200 and 50 weights."""
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))


def test_totals_are_sums_over_the_layers():
    # uniform 0.3: 72 + 60 + 15
    table = plan(net(), 0.3, "uniform")
    assert [(r.name, r.shape, r.size, r.density, r.live) for r in table.layers] == [
        ("0.weight", (20, 12), 240, 0.3, 72),
        ("2.weight", (10, 20), 200, 0.3, 60),
        ("4.weight", (5, 10), 50, 0.3, 15),
    ]
    assert (table.size, table.live, table.density) == (490, 147, pytest.approx(0.3))


def test_flops_are_unknown_without_inputs():
    table = plan(net(), 0.3)
    assert table.flops is table.dense_flops is table.training_flops is table.layers[0].flops is None


def test_flops_count_dense_layers_in():
    # 4.weight stays dense: 2 * 50; the others keep a quarter of 2 * 440
    table = plan(net(), 0.25, "uniform", exclude=["4"], example_inputs=torch.zeros(7, 12))
    assert table.dense_flops == 980
    assert table.other_flops == 100
    assert [row.flops for row in table.layers] == [120, 100]
    assert table.flops == 320
    assert table.training_flops == 960  # a static mask


def test_the_example_input_of_a_lightning_module_serves():
    model = net()
    model.example_input_array = torch.zeros(2, 12)
    assert plan(model, 0.5).dense_flops == 980


def test_the_model_is_not_changed():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan(model, 0.1, example_inputs=torch.zeros(2, 12))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_table_shows_every_layer_and_the_totals():
    text = str(plan(net(), 0.25, "uniform", example_inputs=torch.zeros(1, 12)))
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "layer shape density live weights FLOPs",
        "0.weight 20x12 0.2500 60 240 120",
        "2.weight 10x20 0.2500 50 200 100",
        "4.weight 5x10 0.2500 12 50 24",  # 12.5 each would be 60, 50 and 12.5: 122 in all
        "total 0.2490 122 490 244",
        "forward 244 FLOPs a sample, 24.9% of dense; training 732 FLOPs, 24.9%",
    ]


def test_the_table_says_nothing_of_flops_it_does_not_know():
    lines = str(plan(net(), 1.0)).splitlines()
    assert lines[1].split() == ["0.weight", "20x12", "1.0000", "240", "240", "-"]
    assert lines[-1].split() == ["total", "1.0000", "490", "490", "-"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0.0, "0 "), (999.0, "999 "), (1e3, "1 k"), (1.5e6, "1.5 M"), (4.089e9, "4.09 G"), (2.5e12, "2.5 T")],
)
def test_large_numbers_are_shown_in_three_digits(number, text):
    assert count(number) == text


def test_a_density_for_each_glob_counts_layer_by_layer_first_glob_first():
    # 0.1 * 240, 0.5 * 200, 1 * 50: each rounded by itself
    table = plan(net(), {"0": 0.1, "2.*": 0.5, "*": 1.0})
    assert [(row.density, row.live) for row in table.layers] == [(0.1, 24), (0.5, 100), (1.0, 50)]


def test_a_density_for_each_glob_leaves_every_layer_one_weight():
    assert [row.live for row in plan(net(), {"*": 0.001}).layers] == [1, 1, 1]


def refusal(*args, **kwargs):
    with pytest.raises(ValueError) as error:
        plan(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_density_outside_its_range_is_refused_with_its_value(density):
    assert f"density must be in (0, 1], got {density}" in refusal(net(), density)


def test_all_problems_of_a_density_dict_are_named_at_once():
    text = refusal(net(), {"0": 0.0, "9.*": 0.5, "2": 2.0}, "erdos")
    assert "density must be in (0, 1], got 0.0" in text
    assert "density must be in (0, 1], got 2.0" in text
    assert "unknown allocation 'erdos'; there are uniform, er, erk, global" in text
    assert "density globs ['9.*'] match no sparse layer; layers: 0.weight, 2.weight, 4.weight" in text
    assert "no density for 4.weight; add a glob, '*' for the rest, or exclude them" in text
    assert "5 problems" in text


def test_a_budget_below_one_weight_a_layer_is_refused_with_the_way_out():
    text = refusal(net(), 0.004)
    assert "keeps 2 of 490 weights, too few for one in each of the 3 layers" in text
    assert "the least density that is reachable is 0.006123" in text


@dataclass(frozen=True)
class Halves(Unstructured):
    def fixed_density(self):
        return 0.5


def test_a_density_that_conflicts_with_the_pattern_is_refused():
    chosen = select(net())
    with pytest.raises(ValueError, match=r"has density 0\.5, got .*0\.25; leave density out"):
        make_plan(chosen, 0.25, "erk", pattern=Halves())
    assert make_plan(chosen, 0.5, "uniform", pattern=Halves()).live == 245


@pytest.mark.parametrize(("share", "expected"), TRAINING["rigl_100"].items())
def test_rigl_trains_at_the_published_share_of_dense(share, expected):
    assert round(RigL(every=100).training_flops(float(share), 1.0) / 3, 4) == expected


@pytest.mark.parametrize(("share", "expected"), TRAINING["snfs"].items())
def test_sparse_momentum_trains_at_the_published_share_of_dense(share, expected):
    assert round(SparseMomentum().training_flops(float(share), 1.0) / 3, 4) == expected


@pytest.mark.parametrize("algorithm", [None, Static(), SET(), SET(variant="original"), RigL(every="epoch")])
def test_a_mask_without_dense_gradients_trains_at_the_forward_share(algorithm):
    table = plan(net(), 0.2, "uniform", example_inputs=torch.zeros(1, 12), algorithm=algorithm)
    assert table.training_flops == pytest.approx(0.2 * 3 * 980)


def test_pruning_trains_at_the_mean_density_of_its_ramp():
    # a fifth dense, half of the run on the ramp, whose mean is f + (1 - f) / 4, the rest at f
    f = 0.2
    expected = 0.2 + 0.5 * (f + (1 - f) / 4) + 0.3 * f
    assert GMP(begin=0.2, stop=0.7).training_flops(f, 1.0) / 3 == pytest.approx(expected)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_dense_training_costs_three_forward_passes_under_any_algorithm(name):
    assert ALGORITHMS[name]().training_flops(1.0, 1.0) == pytest.approx(3.0)


def test_a_row_knows_its_size_and_flops():
    row = LayerPlan("a", (4, 3, 2), 0.25, 6, 480.0)
    assert (row.size, row.flops) == (24, 120.0)
