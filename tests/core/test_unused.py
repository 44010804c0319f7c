"""Parameters that training does not use: told of once, and only where that is so."""

import pytest
import torch
from torch import nn

from lightning_sparse import STR, RigL, Sparsifier, Static

MOVING = RigL(every=3, stop=1000)
TEXT = (
    r"no gradient came for 1\.weight in {} optimizer steps: does training use them\? "
    r"They hold 4 of 8 live weights; exclude=\['1\.weight'\]"
)


def run(algorithm, steps, uses=lambda step: False, trains=lambda step: True, accumulate=1):
    """Two layers of sixteen weights; the second is used, and can be trained, in some steps only."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Sparsifier(model, algorithm, 0.25, allocation="uniform", optimizers=[optimizer], total_steps=1000)
    for step in range(1, steps + 1):
        model[1].requires_grad_(trains(step))
        optimizer.zero_grad()
        for part in range(accumulate):
            x = model[0](torch.randn(2, 4))
            (model[1](x) if uses(step) and part == 0 else x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "algorithm",
    [MOVING, Static(), RigL(every=3, stop=1000, replace_step=True)],
    ids=["rigl", "static", "replace_step"],
)
def test_a_weight_that_is_never_used_is_named_once(algorithm):
    with pytest.warns(UserWarning, match=TEXT.format(25)) as found:
        run(algorithm, 60)
    assert len(found) == 1


def test_latent_weights_are_looked_at_too():
    with pytest.warns(UserWarning, match=r"no gradient came for 1\.weight in 25 optimizer steps"):
        run(STR(every=5), 25)


@pytest.mark.parametrize("every", [40, 100])
def test_it_waits_for_the_first_update(every):
    run(RigL(every=every, stop=1000), every - 1)  # warnings are errors
    with pytest.warns(UserWarning, match=TEXT.format(every)):
        run(RigL(every=every, stop=1000), every)


@pytest.mark.parametrize("step", [1, 13, 25])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_step_of_use_is_enough(step, accumulate):
    run(MOVING, 60, uses=lambda now: now == step, accumulate=accumulate)


def test_what_is_frozen_meanwhile_is_not_told_of():
    run(MOVING, 60, trains=lambda step: False)
    run(MOVING, 60, uses=lambda step: step == 50, trains=lambda step: step >= 30)


def test_steps_count_from_the_unfreezing():
    run(MOVING, 53, trains=lambda step: step >= 30)
    with pytest.warns(UserWarning, match=TEXT.format(25)):
        run(MOVING, 54, trains=lambda step: step >= 30)
