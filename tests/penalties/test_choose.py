"""What is penalized, and what cannot be."""

import pytest
import torch
from penalized import LAYERS, network
from torch import nn

from lightning_sparse import LinearSchedule
from lightning_sparse.penalties import L1, L2, ActivationRegularizer, Elastic, GroupLasso, Hoyer, WeightRegularizer


def test_gammas_are_the_weights_of_batch_norms_and_nothing_else():
    made = WeightRegularizer(network(), L1(), 0.1, on="gammas")
    assert [target.name for target in made.targets] == ["1.weight"]


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3), nn.InstanceNorm1d(3, affine=True)]
)
def test_a_model_without_gammas_is_refused(model):
    with pytest.raises(ValueError, match=r"no BatchNorm with weights \(affine=True\).*on='weights'"):
        WeightRegularizer(nn.Sequential(model), L1(), 0.1, on="gammas")


def test_frozen_gammas_are_refused():
    model = network()
    model[1].weight.requires_grad = False
    with pytest.raises(ValueError, match=r"frozen.*1\.weight"):
        WeightRegularizer(model, L1(), 0.1, on="gammas")


def test_kernels_leave_out_what_is_no_convolution_and_say_so():
    made = WeightRegularizer(network(), GroupLasso("kernels"), 0.1)
    assert [target.name for target in made.targets] == LAYERS[:2]
    assert made.left_out == ["6.weight: groups='kernels' need 3 dimensions, it has 2"]


@pytest.mark.parametrize("groups", ["inputs", "channels"])
def test_inputs_of_a_grouped_convolution_do_not_fit(groups):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    assert [t.name for t in WeightRegularizer(model, GroupLasso(groups), 0.1).targets] == ["1.weight"]
    with pytest.raises(ValueError, match=r"0\.weight: .*mixed in a convolution of 2 groups; exclude it"):
        WeightRegularizer(model, GroupLasso(groups), 0.1, include=["0"])
    assert len(WeightRegularizer(model, GroupLasso("neurons"), 0.1).targets) == 2
    turned = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="transposed convolution of 2 groups"):
        WeightRegularizer(turned, GroupLasso("neurons"), 0.1)


def test_groups_of_a_weight_that_has_none_are_refused():
    with pytest.raises(ValueError, match=r"'kernels' need 3 dimensions, it has 2"):
        GroupLasso("kernels").value(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GroupLasso("rows"), ["'rows'", "neurons, inputs, kernels, channels"]),
        (lambda: Elastic(1.5), ["mix", "[0, 1]", "1.5"]),
        (lambda: WeightRegularizer(network(), "l7", 0.1), ["'l7'", "l1, l2, elastic, group_lasso, hoyer"]),
        (lambda: WeightRegularizer(network(), L1(), -0.1), ["-0.1"]),
        (lambda: WeightRegularizer(network(), L1(), float("nan")), ["nan"]),
        (lambda: WeightRegularizer(network(), L1(), True), ["True"]),
        (lambda: WeightRegularizer(network(), L1(), {}), ["no globs"]),
        (lambda: WeightRegularizer(network(), L1(), LinearSchedule(0.1, -0.1), total_steps=9), ["reaches -0.0"]),
        (lambda: WeightRegularizer(network(), L1(), {"0": 0.1}), ["no strength for 3.weight, 6.weight", "'*'"]),
        (lambda: WeightRegularizer(network(), L1(), {"*": 0.1, "9": 0.1}), ["['9']", "6.weight"]),
        (lambda: WeightRegularizer(network(), L1(), 0.1, include=["9"]), ["['9']", "6.weight"]),
        (lambda: WeightRegularizer(network(), L1(), 0.1, on="gammas", include=["9"]), ["['9']", "1.weight"]),
        (lambda: WeightRegularizer(network(), L1(), 0.1, on="gammas", exclude=["1"]), ["nothing is left"]),
        (lambda: WeightRegularizer(network(), L1(), 0.1, on="biases"), ["'biases'", "activations"]),
        (lambda: WeightRegularizer(network(), Hoyer(), 0.1, proximal=True), ["Hoyer()", "proximal=False", "l1"]),
        (lambda: WeightRegularizer(network(), L2(), 0.1, proximal=True), ["L2()", "proximal=False"]),
        (
            lambda: WeightRegularizer(network(), GroupLasso("channels"), 0.1, proximal=True),
            ["overlap", "groups='neurons'"],
        ),
        (lambda: WeightRegularizer(network(), GroupLasso(), 0.1, on="gammas"), ["for weights", "on='gammas'", "l1"]),
        (lambda: ActivationRegularizer(network(), GroupLasso(), 0.1), ["for weights", "on='activations'"]),
        (lambda: ActivationRegularizer(network(), L1(), 0.1, include=["9"]), ["['9']", "candidates: 0, 1, 2"]),
        (lambda: ActivationRegularizer(nn.Linear(2, 2), L1(), 0.1), ["torch.nn.functional", "include="]),
    ],
)
def test_what_cannot_be_is_named_with_the_way_out(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match="3 problems"):
        WeightRegularizer(network(), "l7", -1, exclude="0")
    with pytest.raises(ValueError, match="2 problems") as caught:
        WeightRegularizer(network(), L1(), LinearSchedule(0.1, 0.0), include=["9"])
    assert "['9']" in str(caught.value)
    assert "unknown" in str(caught.value)


def test_sparse_gradients_are_refused():
    with pytest.raises(ValueError, match="sparse=False"):
        WeightRegularizer(nn.Embedding(5, 3, sparse=True), L1(), 0.1, include=["weight"])
    model = nn.Embedding(5, 3)  # nothing about it says what a loss makes of its weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    WeightRegularizer(model, L1(), 0.1, optimizers=[optimizer], include=["weight"])
    nn.functional.embedding(torch.tensor([1, 2]), model.weight, sparse=True).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
