"""Going back where there are several optimizers, several MaskUpdaters, or an optimizer that is not like others."""

import copy

import pytest
import torch
from helpers import Net, Recorder, loader, net, same, saver, stateful, trainer, weights
from torch import nn
from torch.nn import functional as F

from lightning_sparse import GMP, GlobalMagnitude, MaskUpdater, Sparsifier, TopKAST
from lightning_sparse.optim import MaskedAdamW

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 3


def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def train(model, optimizers, steps, **settings):
    """Full batches; the model after every step."""
    engine, pages = Sparsifier(model, density=0.25, optimizers=optimizers, **settings), [weights(model)]

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        for optimizer in optimizers:
            optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
        pages.append(weights(model))
    return engine, pages


def masked(values, masks):
    return {name: value * masks[name] if name in masks else value for name, value in values.items()}


@pytest.mark.parametrize("order", ["biases first", "weights first", "between", "around"])
@pytest.mark.parametrize(("rewind", "step"), [("init", 0), (2, 2)])
def test_all_parameters_go_back_whichever_optimizer_steps_them(order, rewind, step):
    model = small()
    one, two, rest = [model[0].bias], [model[2].bias], [model[0].weight, model[2].weight]
    orders = {
        "biases first": [one + two, rest],
        "weights first": [rest, one + two],
        "between": [one, rest, two],
        "around": [rest, one, two],
    }
    optimizers = [torch.optim.Adam(group, lr=0.1) for group in orders[order]]
    engine, pages = train(model, optimizers, 6, algorithm=GlobalMagnitude(stop=4, rewind=rewind))
    assert engine.rewinds == 1
    assert same(pages[4], masked(pages[step], engine.masks))
    assert all(not torch.equal(pages[6][name], value) for name, value in pages[5].items())  # and all go on


def test_lbfgs_goes_back_and_forgets_its_history():
    model = small()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    engine, pages = train(model, [optimizer], 5, algorithm=GlobalMagnitude(rounds=2, stop=4, rewind="init"))
    assert engine.rewinds == 2
    assert same(pages[4], masked(pages[0], engine.masks))
    assert not same(pages[5], pages[4])


@pytest.mark.parametrize("rewind", ["init", 2])
def test_an_optimizer_that_keeps_live_state_only_goes_back_as_the_dense_one(rewind):
    algorithm, runs = GlobalMagnitude(rounds=2, stop=8, rewind=rewind), []
    for kind in (MaskedAdamW, torch.optim.AdamW):
        model = small()
        runs.append(train(model, [kind(model.parameters(), lr=0.05)], 12, algorithm=algorithm)[1])
    for masked_page, dense_page in zip(*runs, strict=True):
        assert all(torch.allclose(masked_page[name], value, rtol=1e-12) for name, value in dense_page.items())


def test_and_resumes_bit_for_bit(tmp_path):
    class Masked(Net):
        def configure_optimizers(self):
            return MaskedAdamW(self.parameters(), lr=0.01)

    def run(start=None):
        torch.manual_seed(1)
        model = Masked()
        updater = MaskUpdater(GlobalMagnitude(rounds=2, stop=8, rewind=2), 0.25)
        fit = trainer([updater, saver(tmp_path, 5)], max_epochs=3, enable_checkpointing=True)
        fit.fit(model, stateful(4, 16), ckpt_path=start)
        return weights(model)

    assert same(run(), run(tmp_path / "step=5.ckpt"))


@pytest.mark.parametrize("order", ["tickets first", "tickets last"])
def test_going_back_revives_nothing_that_another_mask_updater_has_pruned(order):
    tickets = MaskUpdater(
        GlobalMagnitude(rounds=2, stop=8, rewind="init"), 0.25, include=["net.4"], name="tickets"
    )
    other = MaskUpdater(GMP(every=1, stop=6), 0.25, include=["net.0", "net.6"], name="other")
    updaters = [tickets, other] if order == "tickets first" else [other, tickets]
    recorders = [Recorder(tickets), Recorder(other)]
    trainer([*updaters, *recorders], max_epochs=2).fit(net(), loader(4, 32))
    assert [(r.leaks, r.state_leaks) for r in recorders] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, MaskedAdamW])
@pytest.mark.parametrize("apart", [False, True])
def test_engines_of_one_loop_keep_their_own_masks_when_one_goes_back(kind, apart):
    """Also where the other's weights are in an optimizer of their own, which goes back too."""
    model = small()
    groups = [[model[0].weight, model[0].bias], [model[2].weight, model[2].bias]]
    optimizers = [kind(group, lr=0.05) for group in (groups if apart else [groups[0] + groups[1]])]
    other = Sparsifier(model, GMP(every=1, stop=3), 0.25, include=["2"], optimizers=optimizers)
    algorithm = GlobalMagnitude(rounds=2, stop=8, rewind="init")
    tickets, pages = train(model, optimizers, 10, algorithm=algorithm, include=["0"])
    assert tickets.rewinds == 2
    for page in pages[4:]:
        assert bool((page["2.weight"][~other.masks["2.weight"]] == 0).all())
    assert same(pages[8], masked(pages[0], {**other.masks, **tickets.masks}))


@pytest.mark.parametrize("order", ["tickets first", "tickets last"])
def test_going_back_beside_latent_weights_is_refused(order):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    both = [(GlobalMagnitude(stop=4, rewind="init"), ["0"]), (TopKAST(every=2, stop=4), ["2"])]
    first, second = both if order == "tickets first" else both[::-1]
    kept = Sparsifier(model, first[0], 0.25, include=first[1], optimizers=[optimizer])
    with pytest.raises(ValueError, match=r"2\.weight are computed from latent weights.*rewind=None"):
        Sparsifier(model, second[0], 0.25, include=second[1], optimizers=[optimizer])
    kept.detach()


def test_a_copied_callback_begins_a_run_of_its_own():
    algorithm = GlobalMagnitude(stop=4, rewind="init")
    updater = MaskUpdater(algorithm, 0.25)
    trainer([updater], max_steps=6).fit(net(), loader(4, 32))
    twin = copy.deepcopy(updater)
    trainer([twin], max_steps=6).fit(net(seed=2), loader(4, 32))
    assert same(twin.masks, updater.masks)
    assert twin.sparsifier.rewinds == updater.sparsifier.rewinds == 1
