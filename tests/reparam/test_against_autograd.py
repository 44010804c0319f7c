"""One gradient: the same formulas, written as differentiable expressions of the latent weights, under autograd."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from latents import close, gates, latent, soft
from torch import nn

from lightning_sparse import L0, STR, TopKAST

SLOW = settings(max_examples=40, deadline=None)
NUMBER = st.floats(-2, 2, width=32)


def rows(n):
    return st.lists(NUMBER, min_size=n, max_size=n)


@SLOW
@given(rows(6), rows(6), st.floats(-6, 1), st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_gradients_of_str(weight, slope, start, mask):
    p = latent(weight, STR(stop=9, start=start))
    p.set_mask(torch.tensor(mask))
    w, s = p.latent.clone().requires_grad_(), p.state["threshold"].clone().requires_grad_()
    assume(all(abs(abs(v) - float(s.detach().sigmoid())) > 1e-5 for v in weight))
    (soft(w, s) * p.mask * torch.tensor(slope)).sum().backward()
    close(STR(stop=9).pull_back(p, torch.tensor(slope)), w.grad)
    close(p.scratch["threshold"], s.grad, atol=1e-5)


@SLOW
@given(rows(6), rows(6), st.lists(st.floats(-4, 4), min_size=6, max_size=6), st.integers(0, 99), st.booleans())
def test_the_gradients_of_l0(weight, slope, log_alpha, step, unit):
    algorithm = L0(stop=9, begin=0, gates="unit" if unit else "weight")
    p = latent([weight[:3], weight[3:]], algorithm, module=nn.Linear(3, 2))
    p.set_mask(torch.tensor([[True, True, False], [True, False, True]]))
    p.step, shape = step, p.state["log_alpha"].shape
    p.state["log_alpha"].copy_(torch.tensor(log_alpha)[: math.prod(shape)].view(shape))
    u = p.uniform("gate", shape)
    w, a = p.latent.clone().requires_grad_(), p.state["log_alpha"].clone().requires_grad_()
    shown = w * gates(a, u)
    close(algorithm.effective(p, noisy=True), shown.detach())
    (shown * p.mask * torch.tensor(slope).view(2, 3)).sum().backward()
    close(algorithm.pull_back(p, torch.tensor(slope).view(2, 3)), w.grad)
    close(p.scratch["gates"], a.grad, atol=1e-4)


@SLOW
@given(st.lists(st.floats(-4, 4), min_size=6, max_size=6), st.booleans(), st.floats(0, 3))
def test_the_price_of_l0_is_the_chance_that_gates_are_open(log_alpha, unit, strength):
    algorithm = L0(stop=9, begin=0, gates="unit" if unit else "weight", strength=strength)
    p = latent([[1.0] * 3] * 2, algorithm, module=nn.Linear(3, 2))
    shape = p.state["log_alpha"].shape
    p.state["log_alpha"].copy_(torch.tensor(log_alpha)[: math.prod(shape)].view(shape))
    a = p.state["log_alpha"].clone().requires_grad_()
    # eq. 11 and 12: the chance that the stretched gate is above zero, for each weight
    (strength * (a - 2 / 3 * math.log(0.1 / 1.1)).sigmoid().expand(2, 3)).sum().backward()
    algorithm.learn(p, {"lr": 0.1}, None)
    close(p.state["mean"], 0.1 * a.grad)


@SLOW
@given(rows(8), st.floats(1, 4), st.floats(0, 2))
def test_the_penalty_of_topkast(weight, backward, penalty):
    algorithm = TopKAST(stop=9, backward=backward, penalty=penalty)
    p = latent(weight, algorithm, target=2)
    p.set_mask(algorithm.init([p])["w"])
    a, b = p.mask, p.state["backward"]
    assert bool((b | ~a).all()), "A is in B"
    w = p.latent.clone().requires_grad_()
    (penalty / 2 * ((w * a).square().sum() + (w * (b & ~a)).square().sum() / 0.25)).backward()
    close(algorithm.penalty_gradient(p) if penalty else torch.zeros(8), w.grad, atol=1e-5)


# ---- Steering


@SLOW
@given(
    st.lists(st.integers(1, 990), min_size=4, max_size=16, unique=True),
    st.one_of(st.floats(-12, 6), st.just(-3200.0)),
    st.data(),
)
def test_exactly_as_many_stay_and_the_threshold_moves_no_further_than_it_must(sizes, start, data):
    k = data.draw(st.integers(1, len(sizes) - 1))
    ranked = sorted((v / 1000 for v in sizes), reverse=True)
    low, high = ranked[k], ranked[k - 1]
    p = latent([v / 1000 * (-1) ** i for i, v in enumerate(sizes)], STR(stop=1, start=start), target=k)
    before = float(p.state["threshold"].sigmoid())
    mask = STR(every=1, stop=1).update([p], 1)["w"]
    p.set_mask(mask)
    after = float(p.state["threshold"].sigmoid())
    close(p.latent.abs()[mask].sort(descending=True).values, ranked[:k])
    assert low - 1e-6 <= after <= high
    if low < before < high:
        assert after == pytest.approx(before, abs=1e-6)
    elif before <= low:
        assert after == pytest.approx(low, abs=1e-6)
    shown = STR(stop=1).effective(p).masked_fill(~mask, 0.0)
    assert int(shown.count_nonzero()) == k
