"""Penalties on weights in plain PyTorch loops."""

import pytest
import torch
from penalized import BATCH, LAYERS, Fourth, equal, loss_of, network, stepped
from torch import nn

from lightning_sparse import ConstantSchedule, LinearSchedule, Sparsifier, Static
from lightning_sparse.penalties import L1, L2, PENALTIES, GroupLasso, WeightRegularizer


def outputs_first(name, weight):
    return weight.transpose(0, 1) if name == "3.weight" else weight  # the transposed convolution


@pytest.mark.parametrize("penalty", [*PENALTIES.values(), GroupLasso("inputs"), Fourth()], ids=repr)
def test_steps_are_those_of_a_loss_with_the_penalty_in_it(penalty):
    model, by_hand = network(), network()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, by_hand)]
    regularizer = WeightRegularizer(model, penalty, 0.01, optimizers=[optimizers[0]])
    assert [target.name for target in regularizer.targets] == LAYERS

    def extra(m):
        named = dict(m.named_parameters())
        return 0.01 * sum(penalty.value(outputs_first(name, named[name])) for name in LAYERS)

    for _ in range(3):
        stepped(model, optimizers[0])
        stepped(by_hand, optimizers[1], extra)
    equal(model, by_hand)
    assert float(regularizer.value()) == pytest.approx(float(extra(by_hand).detach()))


def test_the_penalty_is_weighed_once_however_many_batches_are_accumulated():
    model, by_hand = network().eval(), network().eval()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, by_hand)]
    WeightRegularizer(model, L1(), 0.01, optimizers=[optimizers[0]])
    for part in BATCH.split(2):
        (loss_of(model, part) / 4).backward()
    optimizers[0].step()
    stepped(by_hand, optimizers[1], lambda m: 0.01 * sum(m.get_parameter(name).abs().sum() for name in LAYERS))
    equal(model, by_hand)


def test_each_group_shrinks_by_its_own_learning_rate():
    model = network()
    before = {name: model.get_parameter(name).detach().clone() for name in LAYERS}
    groups = [{"params": model[:5].parameters(), "lr": 0.2}, {"params": model[6].parameters(), "lr": 0.05}]
    optimizer = torch.optim.SGD(groups)
    WeightRegularizer(model, L1(), 0.1, optimizers=[optimizer], proximal=True)
    stepped(model, optimizer)
    for name, lr in zip(LAYERS, (0.2, 0.2, 0.05), strict=True):
        weight = model.get_parameter(name)
        moved = before[name] - lr * weight.grad
        assert bool((weight == 0).any())
        torch.testing.assert_close(weight.detach(), moved.sign() * (moved.abs() - lr * 0.1).clamp_min(0))


def test_a_learning_rate_may_be_a_tensor():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.2))
    WeightRegularizer(model, GroupLasso(), 100.0, optimizers=[optimizer], proximal=True)
    stepped(model, optimizer)
    assert not any(bool(model.get_parameter(name).any()) for name in LAYERS)


def test_filters_of_a_transposed_convolution_are_its_outputs():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[3].weight[:, 1] *= 1e-3
    WeightRegularizer(model, GroupLasso(), {"*": 1.0}, optimizers=[optimizer], proximal=True, include=["3"])
    optimizer.param_groups[0]["lr"] = 1e-2
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert [bool(model[3].weight[:, i].any()) for i in range(3)] == [True, False, True]


def still(strength, steps, *, total=None, counts=(), **settings):
    """A weight of ones under SGD with lr 1 and no gradient but the penalty's, after each step."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    made = WeightRegularizer(
        model, L1(), strength, optimizers=[optimizer], total_steps=total, steps=counts, **settings
    )
    found = []
    for _ in range(steps):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        found.append(float(model.weight.detach()[0, 0]))
    return found, made


@pytest.mark.parametrize("proximal", [False, True])
def test_a_schedule_begins_with_the_first_step(proximal):
    found, made = still(LinearSchedule(0.0, 0.4), 4, total=4, proximal=proximal)
    assert found == pytest.approx([1.0, 0.9, 0.7, 0.4])  # 0, 0.1, 0.2, 0.3 are taken away
    assert made.steps == [4]


def test_a_schedule_goes_on_from_saved_counts():
    found, made = still(LinearSchedule(0.0, 0.4), 2, total=4, counts=[2])
    assert found == pytest.approx([0.8, 0.5])
    assert made.steps == [4]


def test_a_constant_schedule_needs_no_length():
    assert still(ConstantSchedule(0.25), 2)[0] == pytest.approx([0.75, 0.5])
    with pytest.raises(ValueError, match=r"length of the run is unknown.*max_steps"):
        still(LinearSchedule(0.0, 0.4), 1)


def test_the_first_glob_that_matches_gives_the_strength():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    made = WeightRegularizer(model, L1(), {"6": 0.0, "*": 0.5}, optimizers=[optimizer])
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    made.add(optimizer)
    assert {name: float(model.get_parameter(name).grad.abs().max()) for name in LAYERS} == dict(
        zip(LAYERS, (0.5, 0.5, 0.0), strict=True)
    )


def test_what_has_no_gradient_in_a_step_is_left_alone():
    for proximal in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        WeightRegularizer(model, L1(), 1.0, optimizers=[optimizer], proximal=proximal)
        before = model[6].weight.detach().clone()
        model[:5](BATCH).sum().backward()
        optimizer.step()
        assert torch.equal(model[6].weight, before)


def test_each_weight_pays_in_the_steps_of_its_own_optimizer():
    model = network()
    lower = torch.optim.SGD(model[:5].parameters(), lr=0.0)
    upper = torch.optim.SGD(model[6].parameters(), lr=0.0)
    made = WeightRegularizer(model, L1(), 0.5, optimizers=[lower, upper])
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    upper.step()
    assert [bool(model.get_parameter(name).grad.any()) for name in LAYERS] == [False, False, True]
    lower.step()
    assert made.steps == [1, 1]
    assert model[6].weight.grad.abs().max() == 0.5


def test_what_was_added_before_clipping_is_not_added_again():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    made = WeightRegularizer(model, L1(), 0.5, optimizers=[optimizer])
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    made.add(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    norm = sum(weight.grad.square().sum() for weight in model.parameters()).sqrt()
    assert float(norm) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("proximal", [False, True])
def test_a_gradient_scaler_changes_nothing_and_a_skipped_step_is_none(fused, proximal):
    model, plain = network().float(), network().float()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01, fused=fused) for m in (model, plain)]
    made = [
        WeightRegularizer(m, L1(), 0.01, optimizers=[o], proximal=proximal)
        for m, o in zip((model, plain), optimizers, strict=True)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        optimizers[0].zero_grad()
        scaler.scale(loss_of(model, BATCH.float()) * (float("inf") if step == 1 else 1)).backward()
        before = model[6].weight.detach().clone()
        scaler.step(optimizers[0])
        made[0].discard()
        scaler.update()
        if step == 1:
            assert torch.equal(model[6].weight, before)
            continue
        optimizers[1].zero_grad()
        loss_of(plain, BATCH.float()).backward()
        optimizers[1].step()
    assert made[0].steps == made[1].steps == [3]
    equal(model, plain, rtol=1e-5, atol=1e-7)


def test_every_closure_of_lbfgs_has_the_penalty_once():
    model, by_hand = network(), network()
    optimizers = [torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=4) for m in (model, by_hand)]
    made = WeightRegularizer(model, L2(), 0.1, optimizers=[optimizers[0]])

    def closure(i, m):
        def run():
            optimizers[i].zero_grad()
            extra = 0.1 * sum(m.get_parameter(name).square().sum() for name in LAYERS) / 2 if i else 0
            loss = loss_of(m) + extra
            loss.backward()
            return loss

        return run

    for _ in range(2):
        optimizers[0].step(closure(0, model))
        optimizers[1].step(closure(1, by_hand))
    assert made.steps == [2]
    equal(model, by_hand, rtol=1e-6, atol=1e-9)


class Nested(torch.optim.SGD):
    """Its step calls its parent's, and both have hooks once a plain SGD was made."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("proximal", [False, True])
def test_a_step_within_a_step_is_one(proximal):
    model, plain = network(), network()
    optimizers = [kind(m.parameters(), lr=0.1) for kind, m in ((Nested, model), (torch.optim.SGD, plain))]
    for m, optimizer in zip((model, plain), optimizers, strict=True):
        made = WeightRegularizer(m, L1(), 0.1, optimizers=[optimizer], proximal=proximal)
        stepped(m, optimizer)
        assert made.steps == [1]
    equal(model, plain, rtol=0, atol=0)


def test_a_line_search_is_refused():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    with pytest.raises(ValueError, match="line_search_fn=None"):
        WeightRegularizer(model, L1(), 0.1, optimizers=[optimizer])


def test_an_optimizer_that_takes_the_place_of_another_goes_on_counting():
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    made = WeightRegularizer(model, L1(), 0.5, optimizers=[first])
    stepped(model, first)
    made.add(second)
    stepped(model, second)
    stepped(model, first)  # not followed any more
    assert made.steps == [2]


def test_an_optimizer_without_step_hooks_is_refused():
    with pytest.raises(TypeError, match="register_step_post_hook"):
        WeightRegularizer(network(), L1(), 0.5, optimizers=[object()])


def test_two_optimizers_of_the_same_weights_are_refused():
    model = network()
    both = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model[6].parameters(), lr=0.1)]
    with pytest.raises(ValueError, match=r"two optimizers step the same weights: 6\.weight"):
        WeightRegularizer(model, L1(), 0.1, optimizers=both)
    assert not both[0]._optimizer_step_post_hooks  # nothing is half attached


@pytest.mark.parametrize("proximal", [False, True])
def test_masked_weights_stay_zero_beside_a_sparsifier(proximal):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    WeightRegularizer(model, L1(), 0.01, optimizers=[optimizer], proximal=proximal)
    sparsifier = Sparsifier(model, Static(), 0.3, optimizers=[optimizer])
    for _ in range(3):
        stepped(model, optimizer)
        assert not any(bool(model.get_parameter(name)[~mask].any()) for name, mask in sparsifier.masks.items())


def test_after_detaching_a_step_is_a_plain_step():
    model, plain = network(), network()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    WeightRegularizer(model, L1(), 0.1, optimizers=[optimizers[0]]).detach()
    for m, optimizer in zip((model, plain), optimizers, strict=True):
        stepped(m, optimizer)
    equal(model, plain, rtol=0, atol=0)
