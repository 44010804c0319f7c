"""Weights that other code has written between two steps are what training goes on from."""

import pytest
import torch
from helpers import same, weights
from latents import LATENT, SETTLING, defect, leaks, start, train


@pytest.mark.parametrize("name", LATENT)
def test_weights_that_are_changed_from_outside_stay_changed(name):
    model, optimizer, _ = start(LATENT[name], optimizer=lambda w: torch.optim.SGD(w, lr=0.0))
    train(model, optimizer, 1)
    with torch.no_grad():
        model[0].weight.mul_(0.5)  # weight clipping, a norm constraint, load_state_dict
    kept = weights(model)["0.weight"]
    train(model, optimizer, 1)
    torch.testing.assert_close(weights(model)["0.weight"], kept, rtol=0.05, atol=1e-4)


@defect("writes through .data raise no version, and values are compared where an optimizer is attached only")
@pytest.mark.parametrize("name", ["str", "topkast"])
def test_weights_that_are_changed_through_data_stay_changed(name):
    model, optimizer, _ = start(LATENT[name], optimizer=lambda w: torch.optim.SGD(w, lr=0.0))
    train(model, optimizer, 1)
    model[0].weight.data.mul_(0.5)
    kept = weights(model)["0.weight"]
    train(model, optimizer, 1)
    torch.testing.assert_close(weights(model)["0.weight"], kept, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("name", LATENT)
def test_a_write_that_changes_no_value_changes_no_bit_of_the_run(name):
    plain, other = start(LATENT[name]), start(LATENT[name])
    for step in range(6):
        train(plain[0], plain[1], 1, step)
        other[0].load_state_dict(other[0].state_dict())
        train(other[0], other[1], 1, step)
    assert same(weights(plain[0]), weights(other[0]))
    for key, p in plain[2].params.items():
        assert torch.equal(p.latent, other[2].params[key].latent)


@pytest.mark.parametrize("name", SETTLING)
def test_what_is_written_where_weights_are_dead_is_not_taken(name):
    model, optimizer, engine = start(SETTLING[name], optimizer=lambda w: torch.optim.SGD(w, lr=0.1))
    train(model, optimizer, 4)
    before = {key: p.latent.clone() for key, p in engine.params.items()}
    optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        for p in engine.params.values():
            assert not bool(p.mask.all())
            p.place.weight[~p.mask] = 0.3
    train(model, optimizer, 1)
    assert leaks(engine) == 0
    assert all(torch.equal(p.latent, before[key]) for key, p in engine.params.items())
