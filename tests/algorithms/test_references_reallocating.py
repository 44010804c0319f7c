"""DSR and SRigL against slow restatements of their papers, on random inputs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from references import dsr, srigl
from tables import param
from torch import nn

from lightning_sparse import DSR, Sparsifier, SRigL
from lightning_sparse.core.schedules import ConstantSchedule

FEW = st.integers(-3, 3).map(lambda n: n / 4)  # many ties
ANY = st.floats(-2, 2, width=32)


@st.composite
def layers(draw, least=1):
    """Weights (zero where dead) and a mask with at least ``least`` live ones."""
    size = draw(st.integers(1, 14))
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    assume(mask.sum() >= least)
    weight = draw(st.lists(draw(st.sampled_from([FEW, ANY])), min_size=size, max_size=size))
    return np.array(weight, np.float32) * mask, mask


@given(st.lists(layers(), min_size=1, max_size=4), st.integers(0, 8), st.sampled_from([0.125, 0.25, 0.3, 0.6, 3.0]))
@settings(deadline=None, max_examples=200)
def test_an_update_of_dsr_is_the_one_of_the_paper(network, eighths, threshold):
    params = [param(weight, mask, name=f"layer{i}") for i, (weight, mask) in enumerate(network)]
    for p in params:
        p.state["threshold"] = torch.tensor(threshold, dtype=torch.float32)
    start, fraction = float(params[0].state["threshold"]), eighths / 8
    weights, masks = [w for w, _ in network], [m for _, m in network]
    chances = [p.uniform("grow").numpy() for p in params]
    wanted = fraction * sum(int(m.sum()) for m in masks)
    expected, _, after = dsr.reallocate(weights, masks, start, wanted, chances)
    found = DSR(every=1, stop=9, fraction=ConstantSchedule(fraction)).update(params, 1)
    assert [found[p.name].tolist() for p in params] == [mask.tolist() for mask in expected]
    assert [float(p.state["threshold"]) for p in params] == [after] * len(params)


@st.composite
def neurons(draw):
    """Weights (zero where dead), a mask of constant fan-in or any other, and gradients; (outputs, inputs)."""
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    size = shape[0] * shape[1]
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    if draw(st.booleans()):
        mask = np.arange(shape[1])[None].repeat(shape[0], 0) < draw(st.integers(1, shape[1]))
    assume(mask.any())
    numbers = st.lists(draw(st.sampled_from([FEW, ANY])), min_size=size, max_size=size)
    weight = np.array(draw(numbers), np.float32).reshape(shape) * mask
    return weight, mask, np.array(draw(numbers), np.float32).reshape(shape)


@given(neurons(), st.integers(0, 16), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_an_update_of_srigl_is_the_one_of_the_paper(layer, sixteenths, gamma, ablate, regrow_dropped):
    fraction = sixteenths / 16
    algorithm = SRigL(
        every=1, stop=9, fraction=ConstantSchedule(fraction), gamma=gamma, regrow_dropped=regrow_dropped
    )
    last = param([[1.0]], [[1]], [[1.0]], name="last")
    expected, _ = srigl.update(*layer, fraction, gamma, ablate, regrow_dropped)
    params = [param(*layer), last] if ablate else [param(*layer)]
    assert algorithm.update(params, 1)["w"].tolist() == expected.tolist()


# ---- Whole runs: two linear layers, least squares, float64; x (30, 9), weights (8, 9) and (4, 8)


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(seed)
    layers = nn.Linear(9, 8, bias=False, dtype=torch.float64), nn.Linear(8, 4, bias=False, dtype=torch.float64)
    return x, y, nn.Sequential(*layers)


def gradients(x, y, first, second):
    """Of the mean squared error, by hand."""
    error = (x @ first.T @ second.T - y) * 2 / y.size
    return [(error @ second).T @ x, error.T @ (x @ first.T)]


def compare(model, x, y, optimizer, sparsifier, history):
    for masks, weights in history:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        for p, mask, weight in zip(sparsifier.params.values(), masks, weights, strict=True):
            np.testing.assert_array_equal(p.mask.numpy(), mask)
            np.testing.assert_allclose(p.weight.numpy(), weight, rtol=1e-9, atol=1e-12)


def changes(history):
    return sum(not all(np.array_equal(*m) for m in zip(a[0], b[0], strict=True)) for a, b in pairwise(history))


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_run_of_dsr_is_the_one_of_the_paper(seed):
    x, y, model = problem(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    algorithm = DSR(every=4, stop=36, fraction=ConstantSchedule(0.4), threshold=0.1)
    sparsifier = Sparsifier(model, algorithm, 0.4, optimizers=[optimizer], seed=seed)
    params = list(sparsifier.params.values())
    masks, weights = [p.mask.numpy().copy() for p in params], [p.weight.numpy().copy() for p in params]
    threshold, wanted, history = float(torch.tensor(0.1)), 0.4 * sum(p.live for p in params), []
    for step in range(1, 41):
        pairs = zip(weights, masks, gradients(x.numpy(), y.numpy(), *weights), strict=True)
        weights = [w - 0.1 * g * m for w, m, g in pairs]
        if step % 4 == 0 and step <= 36:
            shapes, chances = [m.shape for m in masks], []
            for p in params:
                p.step = step
                chances.append(p.uniform("grow").numpy().ravel())
            flat = [w.ravel() for w in weights], [m.ravel() for m in masks]
            new, grown, threshold = dsr.reallocate(*flat, threshold, wanted, chances)
            masks = [m.reshape(shape) for m, shape in zip(new, shapes, strict=True)]
            weights = [w.reshape(shape) for w, shape in zip(grown, shapes, strict=True)]
        history.append((masks, weights))
    compare(model, x, y, optimizer, sparsifier, history)
    assert changes(history) >= 5
    counts = {tuple(int(mask.sum()) for mask in masks) for masks, _ in history}
    assert len(counts) >= 2  # budget moved between the layers
    assert {sum(pair) for pair in counts} == {42}  # 0.4 of 104


@pytest.mark.parametrize("regrow_dropped", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_whole_run_of_srigl_is_the_one_of_the_paper(seed, regrow_dropped):
    x, y, model = problem(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    algorithm = SRigL(
        every=4, stop=40, fraction=ConstantSchedule(0.5), gamma=0.9, regrow_dropped=regrow_dropped
    )
    sparsifier = Sparsifier(model, algorithm, 0.3, optimizers=[optimizer], seed=seed)
    params = list(sparsifier.params.values())
    masks, weights = [p.mask.numpy().copy() for p in params], [p.weight.numpy().copy() for p in params]
    history = []
    for step in range(1, 41):
        slopes = gradients(x.numpy(), y.numpy(), *weights)
        weights = [w - 0.1 * g * m for w, m, g in zip(weights, masks, slopes, strict=True)]
        if step % 4 == 0:
            rows = zip(weights, masks, slopes, (True, False), strict=True)
            new = [srigl.update(w, m, g, 0.5, 0.9, ablate, regrow_dropped) for w, m, g, ablate in rows]
            masks, weights = [m for m, _ in new], [w for _, w in new]
        history.append((masks, weights))
    compare(model, x, y, optimizer, sparsifier, history)
    assert changes(history) >= 5
    assert any(not masks[0].any(1).all() for masks, _ in history)  # a neuron was cut off at some time
    assert all(masks[1].any(1).all() for masks, _ in history)
