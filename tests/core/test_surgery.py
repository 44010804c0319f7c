"""Tensors cut in place, and optimizers that go on as if the cut channels had been masked."""

import copy

import pytest
import torch
from torch import nn

from lightning_sparse.core.surgery import reshape, resize
from lightning_sparse.optim import MaskedAdam, MaskedSGD

KEEP = torch.tensor([0, 2, 3, 6])
CUTS = {"0.weight": {0: KEEP}, "0.bias": {0: KEEP}, "2.weight": {1: KEEP}}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def masked(model):
    """The model with the channels that go held at zero."""
    gone = torch.ones(8, dtype=torch.bool)
    gone[KEEP] = False
    with torch.no_grad():
        model[0].weight[gone] = 0
        model[0].bias[gone] = 0
        model[2].weight[:, gone] = 0
    return gone


def grads(model, step, optimizer, gone=None):
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(7, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    optimizer.zero_grad()
    loss = (model(x.to(model[0].weight.dtype)) - y).square().mean()
    loss.backward()
    if gone is not None:
        model[0].weight.grad[gone] = 0
        model[0].bias.grad[gone] = 0
        model[2].weight.grad[:, gone] = 0
    return loss


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw for each": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.5),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
    "masked sgd": lambda p: MaskedSGD(p, 0.1, momentum=0.9),
    "masked adam": lambda p: MaskedAdam(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_shrunk_optimizer_goes_on_as_the_dense_one_with_those_channels_masked(name):
    dense = net()
    optimizer = OPTIMIZERS[name](dense.parameters())
    gone = masked(dense)
    for step in range(5):
        grads(dense, step, optimizer, gone)
        optimizer.step()
        masked(dense)
    small = copy.deepcopy(dense)
    other = OPTIMIZERS[name](small.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert reshape(dict(small.named_parameters()), CUTS, [other]) == []
    for step in range(5, 15):
        grads(dense, step, optimizer, gone)
        optimizer.step()
        masked(dense)
        grads(small, step, other)
        other.step()
    for key, cut in small.named_parameters():
        whole = dict(dense.named_parameters())[key].detach()
        for d, index in CUTS.get(key, {}).items():
            whole = whole.index_select(d, index)
        torch.testing.assert_close(cut.detach(), whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_with_the_same_gradients_it_goes_on_to_the_bit(name):
    """Ten steps in single precision; gradients are given, for sums of other lengths round otherwise."""
    model = net().float()
    masked(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    small = other = None
    for step in range(15):
        generator = torch.Generator().manual_seed(step)
        if step == 5:
            small = copy.deepcopy(model)
            other = OPTIMIZERS[name](small.parameters())
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            reshape(dict(small.named_parameters()), CUTS, [other])
        for key, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            if small is not None:
                part = p.grad
                for d, index in CUTS.get(key, {}).items():
                    part = part.index_select(d, index)
                small.get_parameter(key).grad = part
        optimizer.step()
        if other is not None:
            other.step()
    assert torch.equal(small[0].weight, model[0].weight[KEEP])
    assert torch.equal(small[0].bias, model[0].bias[KEEP])
    assert torch.equal(small[2].weight, model[2].weight[:, KEEP])
    assert torch.equal(small[2].bias, model[2].bias)


def test_identity_flags_hooks_and_gradients_stay():
    weight = nn.Parameter(torch.arange(12.0).view(3, 4), requires_grad=True)
    frozen = nn.Parameter(torch.arange(4.0), requires_grad=False)
    calls = []
    weight.register_hook(lambda grad: calls.append(tuple(grad.shape)))
    weight.grad = torch.arange(12.0).view(3, 4) * 10
    before = id(weight)
    cuts = {"w": {0: torch.tensor([2]), 1: torch.tensor([1, 3])}, "f": {0: torch.tensor([3])}}
    reshape({"w": weight, "f": frozen}, cuts)
    assert (id(weight), weight.requires_grad, frozen.requires_grad) == (before, True, False)
    assert (weight.tolist(), weight.grad.tolist(), frozen.tolist()) == ([[9.0, 11.0]], [[90.0, 110.0]], [3.0])
    weight.square().sum().backward()
    assert calls == [(1, 2)]


def test_a_held_gradient_accumulator_and_a_live_graph_do_no_harm():
    weight = nn.Parameter(torch.ones(4, 2))
    held = weight.expand_as(weight).grad_fn.next_functions[0][0]
    loss = (weight * 2).sum()
    reshape({"w": weight}, {"w": {0: torch.tensor([0, 1])}})
    (weight * 3).sum().backward()
    assert weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    del held, loss


def test_sparse_gradients_are_cut_too():
    words = nn.Embedding(5, 4, sparse=True)
    words(torch.tensor([1, 3])).sum().backward()
    reshape({"w": words.weight}, {"w": {1: torch.tensor([0, 2])}})
    assert words.weight.grad.to_dense().tolist() == [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]


def test_memory_formats_stay():
    weight = nn.Parameter(torch.rand(8, 6, 3, 3).contiguous(memory_format=torch.channels_last))
    whole = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.square().sum().backward()
    optimizer.step()
    reshape({"w": weight}, {"w": {0: torch.arange(5), 1: torch.tensor([0, 5])}}, [optimizer])
    for tensor in (weight, optimizer.state[weight]["momentum_buffer"]):
        assert tensor.shape == (5, 2, 3, 3)
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert whole.shape == (8, 6, 3, 3)


def test_factored_moments_are_cut_where_they_are_long():
    weight = nn.Parameter(torch.rand(6, 4))
    optimizer = torch.optim.Adafactor([weight])
    weight.square().sum().backward()
    optimizer.step()
    row = {key: value.clone() for key, value in optimizer.state[weight].items() if value.ndim == 2}
    assert reshape({"w": weight}, {"w": {0: torch.tensor([1, 5])}}, [optimizer]) == []
    state = optimizer.state[weight]
    assert torch.equal(state["row_var"], row["row_var"][[1, 5]])
    assert torch.equal(state["col_var"], row["col_var"])
    optimizer.zero_grad()
    weight.square().sum().backward()
    optimizer.step()


def test_lbfgs_starts_its_history_anew_and_says_so():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    optimizer.step(lambda: grads(model, 0, optimizer))
    said = reshape(dict(model.named_parameters()), CUTS, [optimizer])
    assert said == ["LBFGS starts its history anew, for it is of all parameters together"]
    before = grads(model, 1, optimizer).item()
    optimizer.step(lambda: grads(model, 1, optimizer))
    assert grads(model, 1, optimizer).item() < before


@pytest.mark.parametrize("strange", [torch.zeros(7), torch.zeros(8, 5, dtype=torch.uint8), [torch.zeros(8, 5)]])
def test_state_that_cannot_be_cut_is_dropped_for_this_parameter_only(strange):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    grads(model, 0, optimizer)
    optimizer.step()
    optimizer.state[model[0].weight]["blocks"] = strange
    said = reshape(dict(model.named_parameters()), CUTS, [optimizer])
    assert said == ["SGD starts without state for 0.weight: blocks cannot be cut"]
    assert model[0].weight not in optimizer.state
    assert optimizer.state[model[0].bias]["momentum_buffer"].shape == (4,)
    grads(model, 1, optimizer)
    optimizer.step()


def test_live_weights_of_a_masked_optimizer_keep_their_state():
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = MaskedSGD([weight], 0.1, momentum=0.9)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    optimizer.set_mask(weight, mask)
    weight.grad = torch.arange(12.0).view(4, 3)
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0.0, 2.0, 4.0, 6.0, 7.0, 11.0]
    reshape({"w": weight}, {"w": {0: torch.tensor([0, 2])}}, [optimizer])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0.0, 2.0, 6.0, 7.0]
    assert weight.grad.tolist() == [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]]
    optimizer.step()


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ({"x": {0: KEEP}}, "no tensor is named 'x'"),
        ({"0.weight": {2: KEEP}}, "has no dimension 2"),
        ({"0.weight": {0: torch.tensor([8])}}, "has 8 elements in dimension 0"),
        ({"0.weight": {0: torch.tensor([], dtype=torch.int64)}}, "asked to keep \\[\\]"),
    ],
)
def test_what_does_not_fit_changes_nothing(cuts, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        reshape(dict(model.named_parameters()), {"2.weight": {1: KEEP}, **cuts})
    assert model[2].weight.shape == (3, 8)


def test_resize_gives_another_shape_and_keeps_the_rest():
    weight = nn.Parameter(torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last), requires_grad=False)
    weight.grad = torch.rand(4, 3, 2, 2)
    resize(weight, (6, 5, 2, 2))
    assert (weight.shape, weight.grad, weight.requires_grad) == ((6, 5, 2, 2), None, False)
    assert weight.is_contiguous(memory_format=torch.channels_last)
