"""STR, TopKAST and SR-STE on tables of a few weights, worked by hand."""

import math

import pytest
import torch
from latents import close, latent
from tables import Slopes, live, steps
from torch import nn

from lightning_sparse import L0, NM, SRSTE, STR, Sparsifier, TopKAST

QUARTER = math.log(1 / 3)  # its sigmoid is 1/4, of slope 3/16


def trained(row, slope, algorithm, optimizer, density=None, n=1, **settings):
    """A layer after ``n`` steps on the loss ``sum(slope * shown weights)``, and what it showed at first."""
    model = Slopes(row)
    model.slopes[0] = torch.tensor([slope])
    stepper = optimizer(model.parameters())
    engine = Sparsifier(model, algorithm, density, optimizers=[stepper], **settings)
    first = model.layers[0].weight.detach().clone()
    for _ in steps(model, stepper, n):
        pass
    return engine.params["layers.0.weight"], first


# ---- STR: latent .9 -.5 .3 -.2, threshold 1/4


def test_str_shows_what_is_above_the_threshold_less_the_threshold():
    p = latent([0.9, -0.5, 0.3, -0.2], STR(stop=9, start=QUARTER))
    close(STR(stop=9).effective(p), [0.65, -0.25, 0.05, 0])


def test_str_passes_gradients_where_weights_are_shown_and_sums_them_for_the_threshold():
    # s gets -3/16 of 1 * 1 + 2 * -1 - 4 * 1, which is -5
    p = latent([0.9, -0.5, 0.3, -0.2], STR(stop=9, start=QUARTER))
    close(STR(stop=9).pull_back(p, torch.tensor([1.0, 2, -4, 8])), [1, 2, -4, 0])
    close(p.scratch["threshold"], 15 / 16)


def test_a_step_of_str():
    # s goes to log(1/3) - .1 * 15/16, a threshold of 1 / (1 + 3 exp(.09375)) = .232837
    p, first = trained(
        [0.9, -0.5, 0.3, -0.2], [1.0, 2, -4, 8], STR(every=1, stop=9, start=QUARTER), lambda w: torch.optim.SGD(w, 0.1)
    )
    close(first, [[0.65, -0.25, 0.05, 0]])
    close(p.latent, [[0.8, -0.7, 0.7, -0.2]])
    close(p.state["threshold"], QUARTER - 0.09375)
    close(p.weight, [[0.567163, -0.467163, 0.467163, 0]])
    assert live(p.mask) == [0, 1, 2]


@pytest.mark.parametrize(("own", "of_group", "used"), [(None, 0.0, 0.0), (None, 0.2, 0.2), (0.5, 0.2, 0.5)])
def test_the_decay_and_momentum_of_the_threshold(own, of_group, used):
    algorithm = STR(stop=9, start=QUARTER, decay=own)
    p, s, velocity = latent([0.9, -0.5, 0.3, -0.2], algorithm), QUARTER, 0.0
    for _ in range(3):
        p.scratch["threshold"] = torch.tensor(15 / 16)
        algorithm.learn(p, {"lr": 0.1, "momentum": 0.9, "weight_decay": of_group}, None)
        velocity = 0.9 * velocity + 15 / 16 + used * s
        s -= 0.1 * velocity
    close(p.state["threshold"], s)


def test_str_starts_dense_and_unchanged():
    p, first = trained([0.9, -0.5, 1e-30, 0.2], [0.0] * 4, STR(stop=9), lambda w: torch.optim.SGD(w, 0.1))
    assert first.tolist() == p.latent.tolist()
    assert p.live == 4


@pytest.mark.parametrize(
    ("start", "threshold"),
    [
        (-3200.0, 0.4),  # below: up to the largest that is dropped
        (math.log(0.45 / 0.55), 0.45),  # between: stays
        (math.log(0.6 / 0.4), 0.999 * 0.5),  # above: just below what stays (it was halfway, in logits, before)
    ],
)
def test_str_is_steered_to_exactly_as_many_weights_as_asked(start, threshold):
    row = [0.1, -0.5, 0.3, 0.8, 0.4, -0.7, 0.2, 0.6]
    p = latent(row, STR(stop=1, start=start), target=4)
    masks = STR(every=1, stop=1).update([p], 1)
    assert live(masks["w"]) == [1, 3, 5, 7]
    close(p.state["threshold"].sigmoid(), threshold)


def test_str_among_layers_keeps_what_stands_out_above_its_own_threshold():
    # above 1/2: 0 of .5, -.3 of .2; above 1/10: .3 of .4, .05 of .15, -.05 of .05; three stay
    a = latent([0.5, 0.2], STR(stop=1, start=0.0), target=2, name="a", scope="global")
    b = latent([0.4, 0.15, 0.05], STR(stop=1, start=math.log(1 / 9)), target=1, name="b", scope="global")
    masks = STR(every=1, stop=1).update([a, b], 1)
    assert (live(masks["a"]), live(masks["b"])) == ([0], [0, 1])
    close(b.state["threshold"].sigmoid(), 0.1)  # no more stand above than may stay: no threshold has to rise
    close(a.state["threshold"].sigmoid(), 0.999 * 0.5)  # to show what stays it falls


def test_all_thresholds_of_str_rise_together_also_where_nothing_is_lost():
    # above 0: .4 .1 .2, and .3 .5; three stay, so both thresholds rise to the .2 that goes
    a = latent([0.4, 0.1, 0.2], STR(stop=1), target=2, name="a", scope="global")
    b = latent([0.3, -0.5], STR(stop=1), target=1, name="b", scope="global")
    masks = STR(every=1, stop=1).update([a, b], 1)
    assert (live(masks["a"]), live(masks["b"])) == ([0], [0, 1])
    close(a.state["threshold"].sigmoid(), 0.2)
    close(b.state["threshold"].sigmoid(), 0.2)


def test_str_with_a_budget_for_each_layer_raises_each_threshold_by_itself():
    a = latent([0.4, 0.1, 0.2], STR(stop=1), target=1, name="a")
    b = latent([0.3, -0.5], STR(stop=1), target=2, name="b")
    masks = STR(every=1, stop=1).update([a, b], 1)
    assert (live(masks["a"]), live(masks["b"])) == ([0], [0, 1])
    close(a.state["threshold"].sigmoid(), 0.2)
    close(b.state["threshold"], -3200.0)


def test_str_without_a_density_keeps_what_is_above_its_threshold_and_at_least_one():
    p = latent([0.9, -0.5, 0.2, -0.3], STR(stop=9, start=QUARTER), free=True)
    assert live(STR(every=1, stop=9).update([p], 1)["w"]) == [0, 1, 3]
    p.state["threshold"].fill_(5.0)
    assert live(STR(every=1, stop=9).update([p], 2)["w"]) == [0], "no layer may die"
    close(p.state["threshold"], 5.0)


# ---- TopKAST: a quarter of eight forward (0, 1), twice as many backward (2, 3 too)


ROW = [0.8, -0.7, 0.6, -0.5, 0.4, 0.3, 0.2, 0.1]


def test_topkast_shows_the_largest_and_moves_a_few_more():
    # penalty .1, decay .1, slope 1: 0 gets 1 + .08 + .08, 1 gets 1 - .07 - .07, 2 gets 1 + .6 * .1 * (4 + 1) ...
    algorithm = TopKAST(every=1, stop=9, penalty=0.1)
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    p, first = trained(ROW, [1.0] * 8, algorithm, lambda w: torch.optim.SGD(w, **sgd), 0.25)
    close(first, [[0.8, -0.7, 0, 0, 0, 0, 0, 0]])
    close(p.latent, [[0.684, -0.786, 0.47, -0.575, 0.4, 0.3, 0.2, 0.1]])
    close(p.weight, [[0.684, -0.786, 0, 0, 0, 0, 0, 0]])
    assert live(p.state["backward"]) == [0, 1, 2, 3]


def test_topkast_lets_weights_pass_one_another():
    p, _ = trained(ROW, [3.0, 0, 0, 4, 9, 9, 9, 9], TopKAST(every=1, stop=9, penalty=0.0),
                           lambda w: torch.optim.SGD(w, 0.1), 0.25)  # fmt: skip
    close(p.latent, [[0.5, -0.7, 0.6, -0.9, 0.4, 0.3, 0.2, 0.1]])  # outside B nothing moved, whatever the slope
    close(p.weight, [[0, -0.7, 0, -0.9, 0, 0, 0, 0]])
    assert live(p.state["backward"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(("backward", "size"), [(1.0, 2), (1.5, 3), (2.0, 4), (4.0, 8), (9.0, 8)])
def test_the_size_of_the_backward_set(backward, size):
    p, _ = trained(ROW, [0.0] * 8, TopKAST(stop=9, backward=backward), lambda w: torch.optim.SGD(w, 0.1), 0.25)
    assert live(p.state["backward"]) == list(range(size))


# ---- SR-STE: two of four, straight through, what is not shown decays


def test_srste_is_straight_through_and_fades_what_is_not_shown():
    # lr .1, penalty .5: shown weights move by -.1 g, the others by -.1 (g + w / 2)
    row, slope = [0.4, -0.3, 0.2, 0.1, -0.1, 0.2, -0.3, 0.4], [1.0, 1, -2, 1, 1, 1, 1, -1]
    p, first = trained(row, slope, SRSTE(stop=9, penalty=0.5), lambda w: torch.optim.SGD(w, 0.1))
    close(first, [[0.4, -0.3, 0, 0, 0, 0, -0.3, 0.4]])
    close(p.latent, [[0.3, -0.4, 0.39, -0.005, -0.195, 0.09, -0.4, 0.5]])
    close(p.weight, [[0, -0.4, 0.39, 0, 0, 0, -0.4, 0.5]])


def test_srste_chooses_anew_after_every_step_and_always_two_of_four():
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    engine = Sparsifier(model, SRSTE(stop=100), optimizers=[optimizer])
    p, moved = engine.params["weight"], 0
    assert isinstance(p.pattern, NM)
    for _ in range(20):
        before = p.mask
        optimizer.zero_grad()
        (model(torch.randn(8, 16)) - 1).square().mean().backward()
        optimizer.step()
        for row, group in ((i, j) for i in range(4) for j in range(0, 16, 4)):
            sizes = p.latent[row, group : group + 4].abs().tolist()
            best = sorted(range(4), key=lambda k: -sizes[k])[:2]
            assert live(p.mask[row, group : group + 4]) == sorted(best)
        moved += not torch.equal(before, p.mask)
    assert moved >= 5


def test_a_density_of_one_needs_no_latent_weights():
    for algorithm in (STR(stop=9), L0(begin=0, stop=9), TopKAST(stop=9), SRSTE(stop=9)):
        engine = Sparsifier(nn.Linear(4, 4), algorithm, 1.0)
        assert engine.params["weight"].latent is None
