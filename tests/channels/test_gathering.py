"""What criteria ask for is gathered exactly, by slow restatements, and leaves no trace."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from channels.handmade import convolutional, graph, stream, written
from torch import nn
from torch.nn import functional as F

from lightning_sparse.channels import Activation, Sensitivity, Taylor
from lightning_sparse.channels.activations import InputMoments, Moments
from lightning_sparse.channels.collect import Collector, gather
from lightning_sparse.channels.criteria import CRITERIA, named
from lightning_sparse.channels.parts import layout

# --- activations


def test_activation_is_the_variance_of_what_readers_get_over_all_batches_and_pixels():
    model, found = convolutional()
    data = torch.randn(7, 1, 6, 6)
    collector = Collector(model.eval(), found, Activation())
    with torch.no_grad(), collector:
        for batch in data.split([4, 1, 2]):
            model(batch)
    with torch.no_grad():
        model(torch.randn(9, 1, 6, 6))  # after it is closed
        given = model[:3](data).double()
    expected = given.var(dim=(0, 2, 3), correction=0)
    assert collector.scores()["c"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_flattened_channel_is_its_largest_variance_or_the_mean():
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(6, 1))
    found = graph(model, c=["0.weight:0", "2.weight:1:3"])
    values = torch.tensor([[0.0, 0.0, 0.0, 1.0, 5.0, 2.0], [2.0, 0.0, 4.0, 1.0, 5.0, 2.0]])
    for criterion, expected in ((Activation(), [4.0, 0.0]), (Activation("mean"), [5 / 3, 0.0])):
        with Collector(model, found, criterion) as collector:
            model[2](values)
        assert collector.scores()["c"].tolist() == pytest.approx(expected)


def test_variances_of_large_values_lose_nothing_over_many_batches():
    batches = 1e4 + torch.randn(50, 8, 3, generator=torch.Generator().manual_seed(1))
    moments = Moments(batches[0])
    for batch in batches[1:]:
        moments.merge(Moments(batch))
    exact = batches.double().flatten(0, 1)
    assert moments.mean.tolist() == pytest.approx(exact.mean(0).tolist(), rel=1e-6)
    assert moments.variance().tolist() == pytest.approx(exact.var(0, correction=0).tolist(), rel=1e-2)
    assert float(moments.count) == 400


def test_every_group_of_a_grouped_convolution_counts():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1, groups=2))
    found = graph(model, c=["0.weight:0:2", "1.weight:1"])
    moments = InputMoments(layout(model, found))
    with moments:
        model[1](torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]))
    reader = next(slot for slot in layout(model, found)["c"] if slot.role == "in")
    assert moments.at(reader)[0].tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_unbatched_inputs_and_inputs_of_any_number_of_dimensions_are_read_along_their_channels():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    found = graph(model, c=["0.weight:0", "1.weight:1"])
    for given in (torch.tensor([1.0, 2.0]), torch.tensor([[[1.0, 2.0]] * 3] * 4)):
        with InputMoments(layout(model, found)) as moments:
            model[1](given)
        assert moments.of(model[1]).mean.tolist() == [1.0, 2.0]
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1))
    found = graph(model, c=["0.weight:0", "1.weight:1"])
    with InputMoments(layout(model, found)) as moments:
        model[1](torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 3, 5))
    assert moments.of(model[1]).mean.tolist() == [1.0, 2.0]


# --- gradients


def gates(model, batch, targets):
    """The derivative of the loss with respect to a factor on the stream, by autograd."""
    gate = torch.ones(3, requires_grad=True)
    F.mse_loss(model(batch, gate), targets).backward(inputs=[gate])
    return gate.grad


def test_taylor_is_the_squared_derivative_by_a_factor_on_the_channel_averaged_over_batches():
    model, found = stream()
    data, targets = torch.randn(3, 8, 2), torch.randn(3, 8, 4)
    expected = torch.stack([gates(copy.deepcopy(model), x, y) for x, y in zip(data, targets, strict=True)])
    expected = expected.square().mean(0)
    collector = Collector(model, found, Taylor())
    for x, y in zip(data, targets, strict=True):
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        collector.observe()
    assert collector.scores()["s"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_channel_that_no_weight_reads_has_its_factor_where_it_is_produced():
    model = nn.Sequential(nn.Linear(1, 2))
    written(model[0].weight, [2.0, 3.0])
    written(model[0].bias, [1.0, 5.0])
    found = graph(model, c=["0.weight:0", "0.bias:0"])
    collector = Collector(model, found, Taylor())
    model(torch.tensor([[2.0]])).sum().backward()  # both outputs have a gradient of 1, so w g + b g is the output
    collector.observe()
    assert collector.scores()["c"].tolist() == [25.0, 121.0]


def test_batches_whose_gradients_are_not_finite_do_not_count():
    model, found = stream()
    data, targets = torch.randn(8, 2), torch.randn(8, 4)
    collector = Collector(model, found, Taylor())
    F.mse_loss(model(data), targets).backward()
    collector.observe()
    alone = collector.scores()["s"]
    for bad in (float("nan"), float("inf")):
        model.left.weight.grad[0, 1] = bad
        collector.observe()
    assert torch.equal(collector.scores()["s"], alone)


def test_what_is_kept_of_gradients_is_a_number_a_channel():
    model, found = stream()
    collector = Collector(model, found, Taylor())
    for _ in range(3):
        F.mse_loss(model(torch.randn(8, 2)), torch.randn(8, 4)).backward()
        collector.observe()
    kept = [value for value in vars(collector).values() if isinstance(value, dict)]
    sizes = [t.numel() for d in kept for t in d.values() if isinstance(t, torch.Tensor)]
    assert sizes == [3]


def test_sensitivity_of_a_single_output_is_its_squared_derivative_by_the_factor():
    model, found = stream()
    model.eval()
    data = torch.randn(1, 2)
    gate = torch.ones(3, requires_grad=True)
    model(data, gate)[0, 2].backward()
    collector = Collector(model, found, Sensitivity(projections=3))
    collector.look(lambda: model(data)[0, 2])
    assert collector.scores()["s"].tolist() == pytest.approx(gate.grad.square().tolist(), rel=1e-4)


def test_sensitivity_comes_near_the_squared_norm_of_the_derivative_over_samples_and_outputs():
    model, found = stream()
    model.eval()
    data = torch.randn(5, 2)
    jacobian = torch.autograd.functional.jacobian(lambda gate: model(data, gate), torch.ones(3))
    expected = jacobian.square().sum((0, 1))
    collector = Collector(model, found, Sensitivity(projections=150))
    collector.look(lambda: model(data))
    # the spread of a single projection is about sqrt(2) of the value, that of 150 about 12 %
    assert collector.scores()["s"].tolist() == pytest.approx(expected.tolist(), rel=0.35)


def test_outputs_in_containers_and_objects_are_found():
    model, found = stream()
    model.eval()
    data = torch.randn(1, 2)

    @dataclass
    class Answer:
        logits: torch.Tensor

    values = []
    for wrap in (lambda y: y, lambda y: [{"y": y}], Answer):
        collector = Collector(model, found, Sensitivity())
        collector.look(lambda wrap=wrap: wrap(model(data)))
        values.append(collector.scores()["s"])
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("name", ["activation", "taylor", "sensitivity", "gamma"])
def test_looking_leaves_no_trace(name):
    model, found = stream()
    model.dropout = nn.Dropout()
    model.right.weight.requires_grad_(False)
    model.left.weight.grad = torch.ones_like(model.left.weight)
    model.norm_a.eval()
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state(), {n: m.training for n, m in model.named_modules()}
    data = [torch.randn(8, 2, generator=torch.Generator().manual_seed(1))]
    gather(
        Collector(model, found, named(name)), lambda: model(data[0]), data, lambda model, x: model(x).square().mean()
    )
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert {n: m.training for n, m in model.named_modules()} == before[2]
    assert torch.equal(model.left.weight.grad, torch.ones_like(model.left.weight))
    assert model.right.weight.grad is None
    assert not model.right.weight.requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_frozen_readers_count_too():
    model, found = stream()
    data = [(torch.randn(8, 2), torch.randn(8, 4))]
    values = []
    for frozen in (False, True):
        model.right.weight.requires_grad_(not frozen)
        collector = Collector(model, found, Taylor())
        gather(collector, lambda: None, data, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))
        values.append(collector.scores()["s"])
    assert torch.equal(*values)


# --- where there is nothing to gather


def test_readers_that_are_never_called_give_a_reason_not_an_error():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with Collector(model, graph(model, c=["0.weight:0", "1.weight:1"]), Activation()) as collector:
        F.linear(model[0](torch.ones(4, 2)), model[1].weight)
    assert collector.scores() == {}
    assert "was called" in collector.unseen["c"]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_model_without_axes_has_no_scores(name):
    model = nn.Linear(2, 3)
    collector = Collector(model, graph(model), named(name))
    gather(collector, lambda: model(torch.ones(4, 2)), [0], lambda model, batch: model(torch.ones(4, 2)).sum())
    assert collector.scores() == {}


def test_sparse_gradients_count_like_dense_ones():
    values = []
    for sparse in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Linear(3, 2))
        collector = Collector(model, graph(model, c=["0.weight:1"]), Taylor())
        model(torch.tensor([1, 1, 3])).square().sum().backward()
        collector.observe()
        values.append(collector.scores()["c"])
    assert torch.equal(*values)
    assert bool(values[0].all())


@pytest.mark.ddp
def test_two_processes_score_as_one_that_sees_the_data_of_both(pair):
    from channels import scored_ranks

    first, second = pair.results(Path(scored_ranks.__file__))
    together = scored_ranks.alone()
    for name in ("activation", "taylor"):
        assert torch.equal(first[name], second[name])
        assert first[name].tolist() == pytest.approx(together[name].tolist(), rel=1e-4)
