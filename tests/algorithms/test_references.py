"""Algorithms against slow restatements of their papers, on random inputs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from references import rigl
from torch import nn

from lightning_sparse import RigL, Sparsifier
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Unstructured
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule
from lightning_sparse.core.select import Target

FEW = st.integers(-3, 3).map(lambda n: n / 4)  # many ties
ANY = st.floats(-2, 2, width=32)


@st.composite
def layers(draw):
    """Weights (zero where dead), a mask with at least one live weight, and gradients."""
    size = draw(st.integers(1, 20))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    assume(any(mask))
    numbers = draw(st.sampled_from([FEW, ANY]))
    weight = draw(st.lists(numbers, min_size=size, max_size=size))
    grad = draw(st.lists(numbers, min_size=size, max_size=size))
    return np.array(weight, np.float32) * np.array(mask), np.array(mask), np.array(grad, np.float32)


def as_param(weight, mask, grad):
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    live = int(mask.sum())
    p = SparseParam(Target("w", module, "weight"), density=live / len(mask), target=live, pattern=Unstructured())
    p.set_mask(torch.tensor(mask))
    p.dense_grad = torch.tensor(grad)
    return p


@given(layers(), st.integers(0, 16), st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_rigl_update_is_the_one_of_the_paper(layer, sixteenths, regrow_dropped):
    weight, mask, grad = layer
    fraction = sixteenths / 16
    algorithm = RigL(every=1, stop=9, fraction=ConstantSchedule(fraction), regrow_dropped=regrow_dropped)
    expected, _ = rigl.update(weight, mask, grad, fraction, regrow_dropped)
    assert algorithm.update([as_param(*layer)], 1)["w"].tolist() == expected.tolist()


RULES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("regrow_dropped", "replace_step"), RULES)
@pytest.mark.parametrize("seed", range(3))
def test_a_whole_run_of_rigl_is_the_one_of_the_paper(seed, regrow_dropped, replace_step):
    """Least squares in float64: x (30, 12), weight (5, 12)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    model = nn.Linear(12, 5, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    algorithm = RigL(
        every=4, stop=40, fraction=CosineSchedule(0.6), regrow_dropped=regrow_dropped, replace_step=replace_step
    )
    sparsifier = Sparsifier(model, algorithm, 0.3, optimizers=[optimizer], seed=seed)

    def gradient_at(flat):
        w = flat.reshape(5, 12)
        return ((w @ x.numpy().T - y.numpy().T) @ x.numpy() * 2 / 150).ravel()

    history = rigl.train(
        model.weight.detach().numpy().ravel().copy(), sparsifier.masks["weight"].numpy().ravel(), gradient_at,
        steps=50, lr=0.05, every=4, stop=40, alpha=0.6, regrow_dropped=regrow_dropped, replace_step=replace_step,
    )  # fmt: skip
    for weight, mask in history:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        np.testing.assert_array_equal(sparsifier.masks["weight"].numpy().ravel(), mask)
        np.testing.assert_allclose(model.weight.detach().numpy().ravel(), weight, rtol=1e-9, atol=1e-12)
    assert sum(not np.array_equal(a[1], b[1]) for a, b in pairwise(history)) >= 3
