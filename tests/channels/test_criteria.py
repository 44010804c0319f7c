"""Each criterion gives the numbers of its formula, worked out by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
from channels.handmade import convolutional, graph, normed, stream, written
from torch import nn

from lightning_sparse import Criterion
from lightning_sparse.channels import BNStd, BNVariance, Gamma, Random, Sensitivity, WeightNorm
from lightning_sparse.channels.collect import Collector
from lightning_sparse.channels.criteria import CRITERIA, criterion_problems, named


def scores(model, found, criterion):
    return {name: value.tolist() for name, value in Collector(model, found, criterion).scores().items()}


def test_gamma_is_the_absolute_weight_of_batchnorm():
    model, found = convolutional()
    written(model[1].weight, [0.5, -2.0, 0.0])
    assert scores(model, found, Gamma()) == {"c": [0.5, 2.0, 0.0]}


def test_the_batchnorms_of_an_axis_are_combined_by_the_largest_or_by_the_mean():
    model, found = stream()
    written(model.norm_a.weight, [1.0, -4.0, 0.0])
    written(model.norm_b.weight, [3.0, 2.0, 0.0])
    assert scores(model, found, Gamma()) == {"s": [3.0, 4.0, 0.0]}
    assert scores(model, found, Gamma("mean")) == {"s": [2.0, 3.0, 0.0]}


def test_a_channel_that_owns_several_entries_of_a_batchnorm_is_their_largest_or_their_mean():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(4))
    written(model[1].weight, [1.0, 3.0, -5.0, 1.0])
    found = graph(model, c=["0.weight:0", "1.weight:0:2"])
    assert scores(model, found, Gamma()) == {"c": [3.0, 5.0]}
    assert scores(model, found, Gamma("mean")) == {"c": [2.0, 3.0]}


def test_the_running_variance_is_taken_as_it_is():
    model, found = convolutional()
    written(model[1].running_var, [4.0, 0.25, 9.0])
    assert scores(model, found, BNVariance()) == {"c": [4.0, 0.25, 9.0]}


def test_the_effective_deviation_is_that_of_what_batchnorm_puts_out():
    model, found = convolutional()
    model[1].eps = 1.0
    written(model[1].weight, [2.0, -2.0, 3.0])
    written(model[1].running_var, [3.0, 0.0, 1.0])
    expected = [2 * math.sqrt(3 / 4), 0.0, 3 * math.sqrt(1 / 2)]  # the second is dead, and its gamma does not show it
    assert scores(model, found, BNStd())["c"] == pytest.approx(expected)
    assert scores(model, found, Gamma())["c"] == [2.0, 2.0, 3.0]


def test_the_effective_deviation_does_not_change_with_the_scale_of_the_weights_and_the_variance_does():
    model, found = convolutional()
    data = torch.randn(64, 1, 9, 9)
    before, after = [], []
    for scale, values in ((1.0, before), (10.0, after)):
        with torch.no_grad():
            model[0].weight.mul_(scale)
        model[1].reset_running_stats()
        model[1].momentum = 1.0
        model.train()(data)
        values += [scores(model, found, criterion)["c"] for criterion in (BNStd(), BNVariance())]
    assert after[0] == pytest.approx(before[0], rel=1e-3)
    assert after[1] == pytest.approx([100 * value for value in before[1]], rel=1e-3)


def test_without_weights_the_effective_deviation_takes_gamma_for_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1.0, affine=False))
    written(model[1].running_var, [0.0, 3.0])
    found = graph(model, c=["0.weight:0", "1.running_var:0"])
    assert scores(model, found, BNStd())["c"] == pytest.approx([0.0, math.sqrt(3 / 4)])


@pytest.mark.parametrize(
    ("layer", "dim", "expected"),
    [
        (nn.Linear(2, 3), 0, [[1.0, 5.0, 9.0], [1.0, 13**0.5, 41**0.5]]),
        (nn.Conv1d(1, 3, 2), 0, [[1.0, 5.0, 9.0], [1.0, 13**0.5, 41**0.5]]),
        (nn.ConvTranspose1d(2, 3, 1), 1, [[3.0, 5.0, 7.0], [3.0, 17**0.5, 29**0.5]]),
        (nn.Embedding(2, 3), 1, [[3.0, 5.0, 7.0], [3.0, 17**0.5, 29**0.5]]),
    ],
)
def test_weight_norms_are_those_of_the_weights_that_produce_a_channel(layer, dim, expected):
    """Weights are 0, -1, 2 ... -5 in memory; rows of two or columns of three."""
    model = nn.Sequential(layer)
    written(layer.weight, [0.0, -1.0, 2.0, -3.0, 4.0, -5.0])
    places = [f"0.weight:{dim}"] + (["0.bias:0"] if getattr(layer, "bias", None) is not None else [])
    found = graph(model, c=places)
    assert scores(model, found, WeightNorm(1))["c"] == pytest.approx(expected[0])
    assert scores(model, found, WeightNorm(2))["c"] == pytest.approx(expected[1])


def test_random_numbers_depend_on_the_seed_and_the_name_alone():
    model, found = convolutional()
    state = torch.get_rng_state()
    first = scores(model, found, Random(1))
    assert torch.equal(state, torch.get_rng_state())
    assert scores(model, found, Random(1)) == first
    assert scores(model, found, Random(2)) != first
    other = graph(model, other=normed("0", "1", "3"))
    assert scores(model, other, Random(1))["other"] != first["c"]
    assert all(0 <= value < 1 for value in first["c"])


def test_weights_that_read_do_not_count_among_those_that_produce():
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    written(model[0].weight, [1.0, 2.0])
    written(model[1].weight, [9.0, 9.0])
    assert scores(model, graph(model, c=["0.weight:0", "1.weight:1"]), WeightNorm()) == {"c": [1.0, 2.0]}


# --- what cannot be


@pytest.mark.parametrize(("name", "words"), [("gamma", "affine=True"), ("bn_var", "running"), ("bn_std", "BatchNorm")])
def test_an_axis_that_a_criterion_cannot_see_has_no_score_but_a_reason(name, words):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    collector = Collector(model, graph(model, c=["0.weight:0", "1.weight:1"]), named(name))
    assert collector.scores() == {}
    assert words in collector.unseen["c"]




@pytest.mark.parametrize("name", ["activation", "taylor", "sensitivity"])
def test_scores_without_the_data_that_was_asked_for_are_refused(name):
    model, found = stream()
    with pytest.raises(ValueError, match=r"before scores\(\)|between open\(\) and close\(\)"):
        Collector(model, found, named(name)).scores()


def test_a_graph_of_another_shape_is_refused():
    model, found = convolutional()
    model[0].weight = nn.Parameter(torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"0.weight is \(2, 1, 3, 3\), was \(3, 1, 3, 3\)"):
        Collector(model, found, Gamma())


def test_wrong_criteria_are_named_with_the_way_out():
    assert "gamma, bn_var" in criterion_problems("fisher")[0]
    assert "'sum'" in criterion_problems(Gamma("sum"))[0]
    assert "p must be 1 or 2, got 3" in criterion_problems(WeightNorm(3))[0]
    assert "seed" in criterion_problems(Random("x"))[0]
    assert "projections" in criterion_problems(Sensitivity(0))[0]
    assert [criterion_problems(name) for name in CRITERIA] == [[]] * 9


@dataclass(frozen=True)
class Own(Criterion):
    """A user's."""

    wrong: bool = False

    def score(self, part):
        if self.wrong:
            return part.rows.sum()
        return part.rows.square().flatten(1).sum(1) if part.role == "in" else None


def test_a_criterion_of_a_users_own_is_used_and_its_mistakes_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    written(model[1].weight, [1.0, 2.0, 3.0, 4.0])
    found = graph(model, c=["0.weight:0", "1.weight:1"])
    assert scores(model, found, Own()) == {"c": [10.0, 20.0]}
    with pytest.raises(ValueError, match=r"Own\(wrong=True\) gave \(\) for 0.weight, not a score for 2 channels"):
        scores(model, found, Own(wrong=True))
