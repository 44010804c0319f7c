"""GraSP finds the head or asks for it; scores that say nothing make no mask. Refusals name layers and a way out."""

import pytest
import torch
from at_init import X, Y, engine, net, refused
from torch import nn

from lightning_sparse import SNIP, GraSP, SynFlow

# ---- The head of GraSP


def test_a_head_that_is_never_called_is_refused():
    """Attention takes the weight of its output projection, and does not call it; so do heads that are tied by hand."""
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    words = ["out_proj", "head=", "temperature=200.0"]
    data = {"loss": lambda m, b: m(b[0], b[0], b[0])[0].square().sum()}
    refused(words, GraSP(samples=None, batches=1), attention, **data)
    assert engine(GraSP(samples=None, batches=1, temperature=1.0), attention, **data).density() < 0.21


class Twisted(nn.Module):
    """Says its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(30, 3), nn.Linear(6, 30)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def test_a_layer_that_is_called_after_the_last_one_is_named_as_the_head():
    refused(["'head'", "called last", "'body'", "head='body'"], GraSP(samples=None, batches=1), Twisted())
    refused(["classes", "'body'", "head="], GraSP(samples=2), Twisted())  # thirty outputs, three classes
    assert engine(GraSP(samples=2, head="head"), Twisted()).density() == pytest.approx(0.2, abs=0.01)


def test_the_head_may_be_dense():
    """Its logits are softened all the same: masks are those of the layer before it under a head that is named."""
    found = [engine(GraSP(samples=2, head=head), exclude=["2"]).masks["0.weight"] for head in (None, "2")]
    wrong = engine(GraSP(samples=None, batches=1, head="0"), exclude=["2"]).masks["0.weight"]
    right = engine(GraSP(samples=None, batches=1), exclude=["2"]).masks["0.weight"]
    assert torch.equal(*found)
    assert not torch.equal(wrong, right)


def test_grasp_finds_the_head_also_where_it_stays_dense():
    assert engine(GraSP(samples=2), exclude=["2"]).density() == pytest.approx(0.2)


def test_a_loss_without_curvature_is_refused():
    words = ["GraSP", "curvature", "weight", "SNIP"]
    refused(words, GraSP(samples=None, batches=1), nn.Linear(6, 3), loss=lambda m, b: m(b[0]).sum())


# ---- Scores that say nothing


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("algorithm", [SNIP(), SNIP(batches=2), GraSP(samples=None, batches=1)])
def test_a_loss_that_is_not_a_number_is_refused(algorithm, value):
    words = [type(algorithm).__name__, "finite", "0.weight, 2.weight", "batches"]
    refused(words, algorithm, batches=[(X * value, Y), (X, Y)])


def zero_head():
    """Nothing before the head has a gradient, and its own weights are 0. (GraSP's Hessian still sees both layers.)"""
    model = net()
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize("algorithm", [SNIP(), SynFlow(3)])
def test_scores_that_are_all_zero_are_refused(algorithm):
    words = [type(algorithm).__name__, "zero", "0.weight, 2.weight", "exclude="]
    refused(words, algorithm, zero_head())


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = net(), nn.Linear(6, 5)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=None, batches=1, head="used.2"), SynFlow(3)])
def test_a_layer_that_has_to_choose_among_zeros_is_refused(algorithm):
    words = ["zero in unused.weight:", "exclude="]
    refused(words, algorithm, Unused(), allocation="erk")
    assert engine(algorithm, Unused(), allocation="erk", exclude=["unused"]).density() == pytest.approx(0.2, abs=0.01)


def test_a_layer_without_use_goes_first_where_all_share_a_budget():
    for algorithm in (SNIP(), SynFlow(3)):
        assert int(engine(algorithm, Unused()).masks["unused.weight"].sum()) == 1


def test_a_layer_without_use_that_stays_dense_chooses_nothing():
    model = Unused()
    for algorithm in (SNIP(), SynFlow(3)):
        found = engine(algorithm, model, density={"used.*": 0.2, "unused.*": 1.0}).densities()
        assert found["unused.weight"] == 1
