"""Latent weights where it is hard: odd optimizers and loops, patterns, other algorithms before and after."""

import copy
import warnings

import pytest
import torch
from helpers import same, weights
from latents import LATENT, batch, close, latent, leaks, loss_of, start, train, watch
from torch import nn

from lightning_sparse import GMP, L0, NM, SRSTE, STR, Block, RigL, Sparsifier, Static, TopKAST

# ---- STR


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 4)], ids=str)
def test_str_under_a_pattern_does_not_zero_what_it_keeps(pattern):
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    density = None if isinstance(pattern, NM) else 0.25
    engine = Sparsifier(model, STR(every=1, stop=2), density, pattern=pattern, optimizers=[optimizer])
    for _ in range(2):
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        shown = int(model.weight.count_nonzero())
        assert shown >= 0.95 * engine.density() * 4096, f"{shown} non-zero of {engine.density() * 4096:.0f} live"


def test_str_keeps_the_very_largest_from_its_default_start():
    torch.manual_seed(0)
    model = nn.Linear(500, 500, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Sparsifier(model, STR(every=1, stop=2), 0.1, optimizers=[optimizer])
    sizes = model.weight.detach().abs()
    model(torch.ones(1, 500)).sum().backward()
    optimizer.step()
    mask = engine.masks["weight"]
    assert float(sizes[~mask].max()) <= float(sizes[mask].min())


def test_str_ranks_weights_above_one_by_their_size():
    p = latent([1.1, 1.2, 5.0, 3.0], STR(stop=1), target=2)
    assert STR(every=1, stop=1).update([p], 1)["w"].tolist() == [False, False, True, True]


def test_a_layer_that_lost_nothing_at_first_is_not_spared_for_ever():
    # 0.001 to 0.1, and 0.03 to 0.049; of 24 that stay at least 20 are larger than the largest of the second layer
    a = latent([i / 1000 for i in range(1, 101)], STR(stop=10), target=12, name="a", scope="global")
    b = latent([0.03 + i / 1000 for i in range(20)], STR(stop=10), target=12, name="b", scope="global")
    for step in range(1, 11):
        for p, mask in zip((a, b), STR(every=1, stop=10).update([a, b], step).values(), strict=True):
            p.set_mask(mask)
    assert a.live + b.live == 24
    assert a.live >= 12, f"{a.live} of the layer with the larger weights, {b.live} of 20 of the other"


# ---- Steps


@pytest.mark.parametrize("name", ["str", "l0"])
def test_gradients_that_were_staged_and_thrown_away_are_not_taken_for_the_next(name):
    plain, other = start(LATENT[name]), start(LATENT[name])
    for each in (plain, other):
        train(each[0], each[1], 4)
    loss_of(other[0], 9).backward()
    other[2].stage(other[1])  # its norm is not finite, say: the user takes no step
    for each in (plain, other):
        train(each[0], each[1], 1, start=5)
    assert same(weights(plain[0]), weights(other[0]))


class Decaying(torch.optim.SGD):
    """A child that does something before its parent's step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(0.9)
        return super().step(closure)


@pytest.mark.parametrize("name", ["str", "l0", "topkast", "srste"])
def test_what_an_optimizer_does_before_its_parents_step_is_kept(name):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # torch puts hooks on the parent's step, once
    algorithm = {**LATENT, "topkast": TopKAST(stop=99, backward=9.0)}[name]
    model, optimizer, engine = start(algorithm, optimizer=lambda w: Decaying(w, lr=0.0))
    before = {key: p.latent.clone() for key, p in engine.params.items()}
    train(model, optimizer, 1)
    for key, p in engine.params.items():
        close(p.latent, 0.9 * before[key])


class DecayingAfter(torch.optim.SGD):
    """A child that does something after its parent's step."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(0.9)
        return loss


@pytest.mark.parametrize("name", ["str", "l0", "topkast", "srste"])
def test_what_an_optimizer_does_after_its_parents_step_is_kept(name):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    algorithm = {**LATENT, "topkast": TopKAST(stop=99, backward=9.0)}[name]
    model, optimizer, engine = start(algorithm, optimizer=lambda w: DecayingAfter(w, lr=0.0))
    before = {key: p.latent.clone() for key, p in engine.params.items()}
    train(model, optimizer, 1)
    for key, p in engine.params.items():
        close(p.latent, 0.9 * before[key])


def test_after_a_step_that_raised_the_next_forward_pass_is_sparse():
    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            raise ArithmeticError

    model, optimizer, engine = start(LATENT["topkast"], optimizer=lambda w: Breaking(w, lr=0.1))
    seen = watch(model, engine)
    with pytest.raises(ArithmeticError):
        train(model, optimizer, 1)
    engine.discard()
    model(batch(0))
    assert set(seen) == {0}


def test_a_step_that_the_compiler_was_told_to_leave_alone_is_one_step(monkeypatch):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # dynamo does so with LBFGS' once it is in use
    monkeypatch.setattr(torch.optim.SGD, "step", torch.compiler.disable(torch.optim.SGD.step))
    model, optimizer, engine = start(LATENT["str"])
    train(model, optimizer, 3)
    assert engine.steps == 3


@pytest.mark.parametrize("algorithm", [TopKAST(every=3, stop=5), SRSTE(every=3, stop=5)], ids=["topkast", "srste"])
def test_lbfgs_is_sparse_after_weights_have_settled(algorithm):
    model, optimizer, engine = start(algorithm, optimizer=lambda w: torch.optim.LBFGS(w, lr=0.1, max_iter=4))
    seen = watch(model, engine)
    for _ in range(8):

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert set(seen) == {0}


@pytest.mark.parametrize("name", ["str", "l0"])
def test_a_layer_that_was_frozen_stays_as_it_is(name):
    algorithm = {"str": STR(every=900, stop=1000, start=-3.0), "l0": L0(begin=900, stop=1000)}[name]
    model, optimizer, _ = start(algorithm)
    train(model, optimizer, 3)
    model[0].requires_grad_(False)
    kept = weights(model)["0.weight"]
    train(model, optimizer, 3)
    close(weights(model)["0.weight"], kept)


def test_l0_trains_in_double_precision():
    model = nn.Linear(8, 8).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Sparsifier(model, LATENT["l0"], 0.4, optimizers=[optimizer])
    model(torch.ones(1, 8).double()).sum().backward()
    optimizer.step()


# ---- Other weights, other runs


def test_a_failed_step_is_taken_out_by_the_next_one_too():
    class Breaking(torch.optim.SGD):
        broken = False

        def step(self, closure=None):
            if self.broken:
                raise ArithmeticError
            return super().step(closure)

    plain, other = (start(LATENT["topkast"], optimizer=lambda w: Breaking(w, lr=0.1)) for _ in range(2))
    train(plain[0], plain[1], 2)
    train(other[0], other[1], 2)
    other[1].broken = True
    with pytest.raises(ArithmeticError):
        train(other[0], other[1], 1, start=2)
    other[1].broken = False
    other[2].discard()
    for each in (plain, other):
        train(each[0], each[1], 3, start=2)
    assert plain[2].steps == other[2].steps == 5
    assert same(weights(plain[0]), weights(other[0]))


@pytest.mark.parametrize("name", ["l0", "l0_unit"])
def test_gradients_that_were_replaced_after_staging_are_not_pulled_back_twice(name):
    plain, other = start(LATENT[name]), start(LATENT[name])
    for step in range(4):
        train(plain[0], plain[1], 1, step)
        other[1].zero_grad()
        loss_of(other[0], step).backward()
        other[2].stage(other[1])
        for weight in other[0].parameters():
            weight.grad = weight.grad.clone()  # clipped out of place, say
        other[1].step()
    assert same(weights(plain[0]), weights(other[0]))


def test_l0_counts_on_from_what_lives_in_a_second_run():
    model, optimizer, engine = start(L0(every=2, begin=0, stop=20), density=0.25)
    train(model, optimizer, 10)
    engine.restart(engine.algorithm)
    engine.attach(optimizer)
    before = engine.density()
    train(model, optimizer, 4)
    assert engine.density() <= before < 1


def went_on(state, stored, algorithm):
    """Another algorithm goes on with the masks of a TopKAST or RigL run."""
    model, optimizer, engine = start(Static())
    engine.finalize()
    model.load_state_dict(stored)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*goes on with them")
        engine = Sparsifier(model, algorithm, 0.4, optimizers=[optimizer], state=state)
    train(model, optimizer, 6)
    return engine


AFTER = [(RigL(every=2, stop=99), AssertionError), (GMP(every=2, stop=99), AssertionError), (Static(), AssertionError)]
AFTER += [(STR(every=2, stop=99), KeyError), (L0(every=2, begin=0, stop=99), KeyError)]


AFTER = [pytest.param(a, id=type(a).__name__) for a, _ in AFTER]


@pytest.mark.parametrize("algorithm", AFTER)
def test_another_algorithm_goes_on_after_topkast(algorithm):
    model, optimizer, engine = start(TopKAST(every=3, stop=1000))
    train(model, optimizer, 4)
    later = went_on(copy.deepcopy(engine.state_dict()), weights(model), algorithm)
    assert leaks(later) == 0


@pytest.mark.parametrize("algorithm", [SRSTE(stop=99), TopKAST(every=2, stop=99)], ids=["srste", "topkast"])
def test_a_latent_algorithm_goes_on_after_rigl(algorithm):
    model, optimizer, engine = start(RigL(every=3, stop=1000))
    train(model, optimizer, 4)
    later = went_on(copy.deepcopy(engine.state_dict()), weights(model), algorithm)
    assert later.updates > engine.updates
