"""Latent weights under every kind of optimizer and step, in plain loops."""

import pytest
import torch
from helpers import same, weights
from latents import LATENT, SETTLING, SGD, close, leaks, loss_of, start, train, watch

from lightning_sparse.optim import MaskedAdamW


@pytest.mark.parametrize("name", LATENT)
def test_an_sgd_closure_gives_the_steps_of_the_plain_call(name):
    plain, closed = start(LATENT[name]), start(LATENT[name])
    train(plain[0], plain[1], 8)
    for step in range(8):

        def closure(step=step):
            closed[1].zero_grad()
            loss = loss_of(closed[0], step)
            loss.backward()
            return loss

        closed[1].step(closure)
    assert same(weights(plain[0]), weights(closed[0]))
    assert same(plain[2].masks, closed[2].masks)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("name", LATENT)
def test_lbfgs_sees_effective_weights_in_every_closure_and_learns(name, search):
    model, optimizer, engine = start(
        LATENT[name], optimizer=lambda w: torch.optim.LBFGS(w, lr=0.3, max_iter=4, line_search_fn=search)
    )
    seen, losses = watch(model, engine), []

    def closure():
        optimizer.zero_grad()
        losses.append(loss_of(model, 0))
        losses[-1].backward()
        return losses[-1]

    for _ in range(8):
        optimizer.step(closure)
    assert set(seen) == {0}
    assert len(losses) > 16
    assert all(bool(p.latent.isfinite().all()) for p in engine.params.values())
    assert float(losses[-1].detach()) < 0.95 * float(losses[0].detach())


@pytest.mark.parametrize("name", LATENT)
def test_two_optimizers_do_what_one_does(name):
    density = None if name in ("str", "l0", "l0_unit") else 0.4
    one, two = start(LATENT[name], density=density), start(LATENT[name], density=density)
    two[2].detach()
    pair = [torch.optim.SGD(part.parameters(), **SGD) for part in (two[0][0], two[0][2])]
    for optimizer in pair:
        two[2].attach(optimizer)
    train(one[0], one[1], 8)
    for step in range(8):
        two[0].zero_grad()
        loss_of(two[0], step).backward()
        for optimizer in pair:
            optimizer.step()
    assert same(weights(one[0]), weights(two[0]))
    assert same(one[2].masks, two[2].masks)


@pytest.mark.parametrize("name", LATENT)
def test_an_optimizer_that_is_replaced_goes_on_with_the_latent_weights(name):
    whole, parts = (start(LATENT[name], optimizer=lambda w: torch.optim.SGD(w, lr=0.1)) for _ in range(2))
    train(whole[0], whole[1], 10)
    train(parts[0], parts[1], 5)
    again = torch.optim.SGD(parts[0].parameters(), lr=0.1)
    parts[2].detach()
    parts[2].attach(again)
    train(parts[0], again, 5, start=5)
    assert parts[2].steps == 10
    assert same(weights(whole[0]), weights(parts[0]))


OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD(w, **SGD),
    "fused sgd": lambda w: torch.optim.SGD(w, **SGD, fused=True),
    "fused adamw": lambda w: torch.optim.AdamW(w, lr=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LATENT)
def test_a_scaler_changes_nothing_and_its_skipped_step_is_none(name, optimizer):
    plain, scaled = (start(LATENT[name], optimizer=OPTIMIZERS[optimizer]) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for attempt in range(9):
        scaled[1].zero_grad()
        bad = attempt == 4
        scaler.scale(loss_of(scaled[0], attempt) * (float("inf") if bad else 1.0)).backward()
        scaler.step(scaled[1])
        scaler.update()
        if not bad:
            train(plain[0], plain[1], 1, start=attempt)
        assert scaled[2].steps == plain[2].steps
        for key, p in plain[2].params.items():
            q = scaled[2].params[key]
            close(q.latent, p.latent, atol=1e-5)
            assert p.state.keys() == q.state.keys()
            for part in p.state:
                close(q.state[part], p.state[part], atol=1e-4)


@pytest.mark.parametrize("name", SETTLING)
def test_masked_adamw_is_dense_while_weights_are_latent_and_cut_when_they_settle(name):
    plain = start(SETTLING[name], optimizer=lambda w: torch.optim.AdamW(w, lr=0.01))
    cut = start(SETTLING[name], optimizer=lambda w: MaskedAdamW(w, lr=0.01))
    for step in range(10):
        train(plain[0], plain[1], 1, step)
        train(cut[0], cut[1], 1, step)
        assert same(weights(plain[0]), weights(cut[0]))
        for p in cut[2].params.values():
            assert cut[1].state[p.place.weight]["exp_avg"].numel() == (p.size if step < 6 else p.live)
    assert cut[2].density() < 0.5


@pytest.mark.parametrize("name", LATENT)
def test_a_step_that_raises_half_way_leaves_effective_weights_when_the_engine_lets_go(name):
    class Breaking(torch.optim.SGD):
        broken = False

        def step(self, closure=None):
            if self.broken:
                raise ArithmeticError
            return super().step(closure)

    model, optimizer, engine = start(LATENT[name], optimizer=lambda w: Breaking(w, lr=0.1))
    train(model, optimizer, 4)
    optimizer.broken, shown = True, weights(model)
    with pytest.raises(ArithmeticError):
        train(model, optimizer, 1)
    engine.detach()
    assert leaks(engine) == 0
    for key, value in weights(model).items():
        close(value, shown[key])
