"""Penalties on activations in plain PyTorch loops."""

import pytest
import torch
from penalized import BATCH, Fourth, loss_of, network
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_sparse import LinearSchedule
from lightning_sparse.penalties import L1, L2, ActivationRegularizer, Elastic, Hoyer


def outputs(model, names):
    """What modules put out in the forward passes to come."""
    found = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output))
    return found


def gradients(model):
    return [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("penalty", [L1(), L2(), Elastic(0.3), Hoyer(), Fourth()], ids=repr)
def test_activations_pay_what_a_loss_with_the_penalty_in_it_asks(penalty):
    model, by_hand = network(), network()
    found = outputs(by_hand, ["2", "4"])
    made = ActivationRegularizer(model, penalty, 0.01)
    assert list(made.modules) == ["2", "4"]
    made.measure(True)
    loss_of(model).backward()
    loss = loss_of(by_hand)
    extra = 0.01 * sum(penalty.value(sample) for output in found for sample in output) / len(BATCH)
    (loss + extra).backward()
    torch.testing.assert_close(gradients(model), gradients(by_hand))
    assert float(made.value()) == pytest.approx(float(extra.detach()))
    assert made.seen == 2


def test_a_module_that_runs_twice_pays_twice():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu).double()
    by_hand = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU()).double()
    by_hand.load_state_dict(model.state_dict())
    found = outputs(by_hand, ["1", "3"])
    ActivationRegularizer(model, L1(), 0.1)
    batch = torch.randn(4, 3, dtype=torch.float64)
    model(batch).square().sum().backward()
    (by_hand(batch).square().sum() + 0.1 * sum(output.abs().sum() for output in found) / 4).backward()
    torch.testing.assert_close(gradients(model), gradients(by_hand))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_pay_once(reentrant):
    model, plain = network(), network()
    both = [ActivationRegularizer(m, L1(), 0.1) for m in (model, plain)]
    for made in both:
        made.measure(True)
    hidden = model[0](BATCH)
    for block in (model[1:3], model[3:]):
        hidden = checkpoint(block, hidden, use_reentrant=reentrant)
    hidden.square().mean().backward()
    loss_of(plain).backward()
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert float(both[0].value()) == pytest.approx(float(both[1].value()))


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed")  # torch's own look
def test_a_compiled_model_pays_the_same_even_if_it_was_compiled_before():
    model, plain = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    compiled, batch = torch.compile(model, backend="eager"), torch.randn(4, 3)
    for attached in (False, True, False):
        made = [ActivationRegularizer(m, L1(), 0.1) for m in (model, plain)] if attached else []
        for m in (compiled, plain):
            m.zero_grad()
            m(batch).square().mean().backward()
        torch.testing.assert_close(gradients(model), gradients(plain))
        assert [regularizer.seen for regularizer in made] == [1, 1][: len(made)]
        for regularizer in made:
            regularizer.detach()


def test_an_output_pays_in_the_first_backward_pass_that_reaches_it():
    model, plain = network(), network()
    for m in (model, plain):
        ActivationRegularizer(m, L1(), 0.1)
    loss = loss_of(model)
    (loss / 2).backward(retain_graph=True)
    (loss / 2).backward()
    loss_of(plain).backward()
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_a_gradient_penalty_of_the_users_own_does_not_pay():
    model, plain = network().eval(), network().eval()
    made = ActivationRegularizer(model, L1(), 0.1)
    for m in (model, plain):
        made.factor = None  # what a callback does outside of the backward pass
        batch = BATCH.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(batch).sum(), batch, create_graph=True)
        loss = slope.square().sum()
        if m is plain:
            loss = loss + 0.0 * m(batch).sum()
        loss.backward()
    given = [weight.grad for weight in model.parameters() if weight.grad is not None and bool(weight.grad.any())]
    wanted = [weight.grad for weight in plain.parameters() if weight.grad is not None and bool(weight.grad.any())]
    torch.testing.assert_close(given, wanted)


def test_evaluation_does_not_pay():
    model = network()
    made = ActivationRegularizer(model, L1(), 0.1)
    with torch.no_grad():
        loss_of(model)
    for weight in model.parameters():
        weight.requires_grad = False
    loss_of(model)
    assert made.seen == 0


def test_what_was_changed_in_place_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Hardshrink(), nn.ReLU(inplace=True))
    ActivationRegularizer(model, L1(), 0.1, include=["1"])
    with pytest.raises(RuntimeError, match="what 1 put out was changed in place"):
        model(torch.randn(4, 3)).sum().backward()


def test_relu_in_place_pays_like_any_other():
    model, plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)), nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    plain.load_state_dict(model.state_dict())
    batch = torch.randn(4, 3)
    for m in (model, plain):
        ActivationRegularizer(m, L1(), 0.1)
        F.dropout(m(batch), 0.0).sum().backward()
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_a_module_that_puts_out_no_tensor_is_refused_by_name():
    model = nn.Sequential(nn.GRU(3, 3))
    ActivationRegularizer(model, L1(), 0.1, include=["0"])
    with pytest.raises(ValueError, match="0 puts out tuple, not a tensor of samples"):
        model(torch.randn(4, 3))


def test_a_small_strength_survives_half_precision():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.float16), nn.ReLU())
    nn.init.ones_(model[0].weight)
    made = ActivationRegularizer(model, L1(), 1e-6)
    made.factor = 2.0**16
    hidden = outputs(model, ["0"])
    model(torch.ones(512, 2, dtype=torch.float16)).mul(0).sum().backward()
    assert len(hidden) == 1
    wanted = 512 * 1e-6 / 512 * 2.0**16  # every sample gives its share
    assert model[0].weight.grad[0, 0].item() == pytest.approx(wanted, rel=0.01)


def test_activations_follow_a_schedule_by_the_steps_of_optimizers():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    made = ActivationRegularizer(model, L1(), LinearSchedule(0.0, 0.4), optimizers=[optimizer], total_steps=4)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(5, 1)).mul(0).sum().backward()
        optimizer.step()
        found.append(float(model[0].weight.detach()))
    assert found == pytest.approx([1.0, 0.9, 0.7, 0.4])
    assert made.steps == [4]


def test_detached_activations_do_not_pay():
    model, plain = network(), network()
    ActivationRegularizer(model, L1(), 0.1).detach()
    for m in (model, plain):
        loss_of(m).backward()
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=0, atol=0)
