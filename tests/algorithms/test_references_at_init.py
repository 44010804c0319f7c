"""SNIP, GraSP and SynFlow against slow restatements of their papers, on random networks in float64."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from references import grasp, snip, synflow
from torch import nn
from torch.nn import functional as F

from lightning_sparse import SNIP, GraSP, Sparsifier, SynFlow

WIDTHS = st.lists(st.integers(2, 6), min_size=2, max_size=4)  # of input, hidden and output layers
SEEDS = st.integers(0, 10**6)
DENSITIES = st.sampled_from([0.1, 0.25, 0.4, 0.6, 0.9])


class Random:
    """Weights and biases of a perceptron, and batches of inputs and class numbers."""

    def __init__(self, widths, seed, batches=1):
        draw = np.random.default_rng(seed)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))
        self.weights = [draw.normal(size=pair) for pair in pairs]
        self.biases = [draw.normal(size=rows) for rows, _ in pairs]
        self.batches = [(draw.normal(size=(5, widths[0])), draw.integers(0, widths[-1], 5)) for _ in range(batches)]

    def model(self, between):
        layers = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = nn.Linear(*weight.shape[::-1], dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(weight))
                linear.bias.copy_(torch.tensor(bias))
            layers += [linear, between()]
        return nn.Sequential(*layers[:-1])

    def masks(self, algorithm, density, between=nn.Tanh, allocation=None):
        batches = [(torch.tensor(x), torch.tensor(y)) for x, y in self.batches]
        data = {"batches": batches, "loss": loss, "example_inputs": torch.zeros(3, len(self.weights[0][0]))}
        return Sparsifier(self.model(between), algorithm, density, allocation=allocation, **data).masks

    def count(self, density):
        """Of all weights, rounded; None where that is less than one in each layer."""
        count = round(density * sum(w.size for w in self.weights))
        return count if count >= len(self.weights) else None


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def same(found, expected):
    assert [mask.tolist() for mask in found.values()] == [np.asarray(mask).tolist() for mask in expected]


@given(WIDTHS, SEEDS, st.integers(1, 3), DENSITIES)
@settings(deadline=None, max_examples=25)
def test_snip_keeps_the_connections_of_the_paper(widths, seed, batches, density):
    net = Random(widths, seed, batches)
    assume(net.count(density))
    expected = snip.prune(net.weights, net.biases, net.batches, net.count(density))
    assume(all(mask.any() for mask in expected))
    same(net.masks(SNIP(batches=batches), density), expected)


@given(st.lists(st.sampled_from([2, 4, 6, 8]), min_size=2, max_size=4), SEEDS, st.sampled_from([0.25, 0.5, 0.75]))
@settings(deadline=None, max_examples=12)
def test_snip_by_layer_keeps_the_best_of_every_layer(widths, seed, density):
    """Sizes are multiples of four: there are no remainders to share out."""
    net = Random(widths, seed)
    scores = snip.sensitivity(net.weights, net.biases, net.batches)
    expected = [snip.best([s], int(density * s.size))[0] for s in scores]
    same(net.masks(SNIP(), density, allocation="uniform"), expected)


@given(WIDTHS, SEEDS, st.integers(1, 3), DENSITIES, st.sampled_from([1.0, 5.0, 200.0]))
@settings(deadline=None, max_examples=25)
def test_grasp_keeps_the_weights_of_the_paper(widths, seed, batches, density, temperature):
    net = Random(widths, seed, batches)
    assume(net.count(density))
    scores = grasp.flow_scores(snip.gradient, net.weights, net.biases, net.batches, temperature)
    assume(grasp.is_clear(scores, net.count(density)))
    expected = snip.best(scores, net.count(density))
    assume(all(mask.any() for mask in expected))
    same(net.masks(GraSP(samples=None, batches=batches, temperature=temperature), density), expected)


@given(WIDTHS, SEEDS, st.sampled_from([1, 2, 7, 30]), DENSITIES)
@settings(deadline=None, max_examples=25)
def test_synflow_keeps_the_weights_of_the_paper(widths, seed, iterations, density):
    net = Random(widths, seed)
    assume(net.count(density))
    lists = [w.tolist() for w in net.weights], [b.tolist() for b in net.biases]
    expected = synflow.prune(*lists, net.count(density), iterations)
    assume(expected is not None)
    same(net.masks(SynFlow(iterations=iterations), density, nn.ReLU), expected)


@given(WIDTHS, SEEDS, st.sampled_from([0.05, 0.1, 0.15]))
@settings(deadline=None, max_examples=12)
def test_no_layer_dies_and_the_count_is_exact_where_the_paper_would_empty_one(widths, seed, density):
    net = Random(widths, seed)
    assume(net.count(density))
    for algorithm, between in ((SNIP(), nn.Tanh), (GraSP(samples=None, batches=1), nn.Tanh), (SynFlow(1), nn.ReLU)):
        masks = net.masks(algorithm, density, between).values()
        assert sum(int(mask.sum()) for mask in masks) == net.count(density)
        assert all(mask.any() for mask in masks)


# ---- The restatements themselves


def test_the_gradient_of_the_restatement_is_the_one_of_central_differences():
    net = Random([4, 3, 5], 1)
    (x, y), step = net.batches[0], 1e-6
    found = snip.gradient(net.weights, net.biases, x, y, 3.0)

    def cost():
        logits = snip.forward(net.weights, net.biases, x, 3.0)[-1]
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[range(len(y)), y])

    for weight, gradient in zip(net.weights, found, strict=True):
        for place in np.ndindex(weight.shape):
            old = weight[place]
            weight[place] = old + step
            up = cost()
            weight[place] = old - step
            assert (up - cost()) / (2 * step) == pytest.approx(gradient[place], abs=1e-8)
            weight[place] = old


def test_the_flow_of_the_restatement_is_conserved_between_layers_without_biases():
    net = Random([4, 3, 5], 1)
    masks = [np.ones_like(w) for w in net.weights]
    first, last = synflow.flow_scores(net.weights, [np.zeros(3), np.zeros(5)], masks)
    assert sum(map(sum, first)) == pytest.approx(sum(map(sum, last)))
