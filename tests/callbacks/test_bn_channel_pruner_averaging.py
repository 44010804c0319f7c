"""With moving averages of the weights: they lose the same channels, and runs go on."""

import pytest
import torch
from helpers import same, stateful, weights
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from pruned import fit, net, pruner, widths


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(0.01, 2)])
def test_averages_lose_the_same_channels(kind, first):
    average, cut = kind(), pruner(0.5)
    order = [average, cut] if first else [cut, average]
    model, _, _ = fit(order[0], order[1], max_epochs=3)
    assert sum(widths(model)) == 18
    shadow = average._average_model
    inner = getattr(shadow, "module", shadow)
    assert {n: p.shape for n, p in inner.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert inner(torch.zeros(2, 2, 6, 6)).shape == (2, 5)


@pytest.mark.parametrize("first", [True, False])
def test_a_run_with_an_average_goes_on_bit_for_bit(first, tmp_path):
    ends = []
    for start in (None, tmp_path / "step=16.ckpt"):
        average, cut = EMAWeightAveraging(decay=0.9), pruner(0.5, at=[1, 2])
        order = [average, cut] if first else [cut, average]
        model, _, state = fit(*order, model=net("adamw", seed=3), data=stateful(), folder=tmp_path, start=start)
        ends.append((weights(model), state[0]))
    assert same(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])
