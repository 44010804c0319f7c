"""Options, groups, gradients and masks that cannot be are refused by name, all at once."""

import inspect

import pytest
import torch
from torch import nn

from lightning_sparse import optim
from lightning_sparse.optim import MaskedAdam, MaskedAdamW, MaskedSGD, ProxSGD


def params():
    return [nn.Parameter(torch.ones(2, 2))]


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (MaskedSGD, {"lr": -1.0}, ["lr must be >= 0, got -1.0"]),
        (MaskedSGD, {"lr": float("nan")}, ["lr must be >= 0, got nan"]),
        (MaskedSGD, {"momentum": -0.5, "weight_decay": -2.0}, ["2 problems", "momentum", "-0.5", "weight_decay", "-2"]),
        (MaskedSGD, {"nesterov": True}, ["nesterov=True needs a momentum", "momentum=0.0"]),
        (MaskedSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ["no dampening", "dampening=0.1"]),
        (MaskedAdam, {"betas": (0.9, 1.0)}, ["betas must be two numbers in [0, 1), got (0.9, 1.0)"]),
        (MaskedAdamW, {"eps": -1e-8, "betas": (-0.1, 0.9)}, ["2 problems", "eps", "-0.1"]),
        (ProxSGD, {"l1": -1.0, "groups": "columns"}, ["2 problems", "l1", "'none' or 'rows', got 'columns'"]),
        (ProxSGD, {"momentum": 1.0}, ["momentum must be below 1, got 1.0"]),
        (MaskedSGD, {"lr": 3.41e38, "weight_decay": 1e16}, ["2 problems", "lr must be at most 1e+15, got 3.41e+38"]),
        (MaskedSGD, {"dampening": -1e38}, ["dampening must be a number of at most 1e+15, got -1e+38"]),
        (MaskedAdam, {"lr": 3.41e37}, ["lr must be at most 1e+15, got 3.41e+37"]),  # by the first correction of bias
        (ProxSGD, {"momentum": 0.9, "dampening": 1.0}, ["dampening must be in [0, 1), got 1.0"]),
    ],
)
def test_a_bad_option_is_refused_by_name(cls, options, words):
    with pytest.raises(ValueError) as caught:
        cls(params(), **options)
    assert all(word in str(caught.value) for word in [cls.__name__, *words])


@pytest.mark.parametrize("cls", [MaskedSGD, MaskedAdam, MaskedAdamW, ProxSGD])
def test_the_largest_options_that_are_taken_can_be_computed_with(cls):
    (weight,) = given = params()
    names = {"lr", "weight_decay", "l1", "eps"} & set(cls(params()).defaults)
    optimizer = cls(given, **dict.fromkeys(names, 1e15))
    weight.square().sum().backward()
    optimizer.step()
    optimizer.step()


def test_a_bad_option_of_a_later_group_is_refused_and_the_group_is_not_added():
    optimizer = ProxSGD(params(), lr=0.1)
    with pytest.raises(ValueError, match="groups must be 'none' or 'rows', got 'all'"):
        optimizer.add_param_group({"params": params(), "groups": "all"})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_sent_to_sparse_adam():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = MaskedAdam(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"MaskedAdam is for sparse weights.*torch\.optim\.SparseAdam"):
        optimizer.step()


def test_defaults_are_torchs():
    for mine, theirs in ((MaskedSGD, "SGD"), (MaskedAdam, "Adam"), (MaskedAdamW, "AdamW"), (ProxSGD, "SGD")):
        expected = getattr(torch.optim, theirs)(params()).defaults
        own = mine(params()).defaults
        assert {name: own[name] for name in own if name in expected} == {n: expected[n] for n in own if n in expected}
        assert set(own) - set(expected) == ({"l1", "groups"} if mine is ProxSGD else set())


def test_groups_keep_their_own_options():
    first, second = params(), params()
    optimizer = MaskedSGD([{"params": first, "lr": 1.0}, {"params": second}], lr=0.25)
    optimizer.set_mask(second[0], torch.eye(2).bool())
    for weight in (*first, *second):
        weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert first[0].tolist() == [[0, 0], [0, 0]]
    assert second[0].tolist() == [[0.75, 1], [1, 0.75]]


@pytest.mark.parametrize("cls", [MaskedSGD, MaskedAdam, MaskedAdamW, ProxSGD])
def test_a_step_without_gradients_does_nothing(cls):
    weights = params()
    optimizer = cls(weights)
    optimizer.set_mask(weights[0], torch.eye(2).bool())
    optimizer.step()
    assert weights[0].tolist() == [[1, 1], [1, 1]]
    assert set(optimizer.state[weights[0]]) == {"mask"}


def test_named_parameters_are_taken():
    layer = nn.Linear(2, 2)
    optimizer = MaskedAdamW(layer.named_parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 2


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(10, 8), ["bool tensor", "torch.float32", "mask.bool()"]),
        (torch.ones(8, 10, dtype=torch.bool), ["[10, 8]", "[8, 10]"]),
        (torch.ones(80), ["2 problems", "[80]", "torch.float32"]),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_all_its_faults(mask, words):
    weight = nn.Parameter(torch.ones(10, 8))
    with pytest.raises(ValueError) as caught:
        MaskedAdam([weight]).set_mask(weight, mask)
    assert all(word in str(caught.value) for word in ["MaskedAdam.set_mask", *words])


def test_a_weight_of_no_group_is_refused():
    with pytest.raises(ValueError, match=r"shape \[2, 2\] is in no parameter group"):
        MaskedSGD(params()).set_mask(nn.Parameter(torch.ones(2, 2)), torch.eye(2).bool())


def test_a_distributed_weight_is_refused():
    (weight,) = params()
    weight.full_tensor = lambda: weight  # what tells a DTensor
    with pytest.raises(ValueError, match="is a DTensor; use torch's optimizer"):
        MaskedSGD([weight]).set_mask(weight, torch.eye(2).bool())


def test_every_public_optimizer_has_an_example_of_its_own():
    assert sorted(optim.__all__) == optim.__all__
    for name in optim.__all__:
        text = inspect.cleandoc(vars(getattr(optim, name))["__doc__"])
        assert "\nExample:\n    >>> " in text, name
