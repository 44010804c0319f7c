"""slim cuts any module in place: what comes out."""

import warnings
from functools import partial

import pytest
import torch
from channels.slimmed import Net, data, inputs, loss, widths
from torch import nn

from lightning_sparse import ChannelReport, slim
from lightning_sparse.channels import Gamma, WeightNorm, decide
from lightning_sparse.channels.criteria import CRITERIA
from lightning_sparse.channels.latency import Stopwatch


def test_half_of_each_axis_stays_and_the_module_is_plain():
    model = Net()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    report = slim(model, inputs())
    assert widths(model) == (8, 16)
    assert model.head.in_features == 8
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert isinstance(report, ChannelReport)
    assert report.channels == (48, 24)
    fresh = Net(8)
    fresh.load_state_dict(model.state_dict())  # the smaller model of the same code takes the weights
    assert torch.equal(fresh.eval()(inputs()), model.eval()(inputs()))
    model.train()(inputs()).sum().backward()


def test_l1_keeps_the_filters_of_largest_norm_in_their_order():
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.1, 0.1], [-2.0, -2.0], [1.0, 1.0]]))
        columns = model[2].weight.clone()
    slim(model, torch.zeros(1, 2))
    assert model[0].weight.tolist() == [[3.0, 0.0], [-2.0, -2.0]]
    assert torch.equal(model[2].weight, columns[:, [0, 2]])


def test_channels_with_gamma_and_beta_zero_leave_and_nothing_changes():
    model = Net().eval()
    stays = [i for i in range(32) if i % 4 == 0]
    with torch.no_grad():
        model.inner_norm.weight[[i for i in range(32) if i not in stays]] = 0
        model.inner_norm.bias.normal_()
        model.inner_norm.bias[[i for i in range(32) if i not in stays]] = 0
    before, gammas = model(inputs()), model.inner_norm.weight.clone()
    slim(model, inputs(), criterion="gamma", threshold=0.0)
    assert widths(model) == (16, 8)
    assert torch.equal(model.inner_norm.weight, gammas[stays])
    assert torch.allclose(model(inputs()), before, atol=1e-6)


def test_constants_of_channels_with_gamma_zero_are_folded_whatever_the_example():
    outputs = []
    for compensate in (False, True):
        torch.manual_seed(3)
        model = Net().eval()
        with torch.no_grad():
            model.inner_norm.weight[8:] = 0
            model.inner_norm.bias.fill_(0.7)
        before = model(inputs())
        slim(model, torch.randn(2, 1, 9, 7), criterion=Gamma(), threshold=0.0, compensate=compensate)
        assert widths(model) == (16, 8)
        outputs.append(float((model(inputs()) - before).detach().abs().max()))
    assert outputs[0] > 0.01
    assert outputs[1] < 1e-5


def test_means_are_folded_where_there_are_batches_and_only_constants_where_there_are_not():
    biases = []
    for given in ({}, {"batches": data(), "loss": loss}):
        torch.manual_seed(3)
        model = Net().eval()
        before = model.outer.bias.clone()
        slim(model, inputs(), exclude=["stem"], **given)
        biases.append(torch.equal(model.outer.bias, before))
    assert biases == [True, False]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_criterion_cuts_the_exact_number_under_both_scopes(criterion, scope):
    model = Net(8)
    report = slim(model, inputs(), 0.55, criterion=criterion, scope=scope, batches=data(), loss=loss)
    assert sum(widths(model)) == report.channels[1] == 13  # of 24: 13.2
    assert model.eval()(inputs()).shape == (4, 5)


@pytest.mark.parametrize("target", ["flops", "params"])
def test_flops_and_parameters_come_near_their_share(target):
    model = Net()
    report = slim(model, inputs(), 0.4, target=target)
    before, after = report.flops if target == "flops" else report.params
    assert after == pytest.approx(0.4 * before, rel=0.05)
    assert report.params[1] == sum(p.numel() for p in model.parameters())


def test_inputs_may_be_arguments_and_keywords():
    for given in ((inputs(),), {"x": inputs(), "scale": 2.0}):
        model = Net()
        slim(model, given)
        assert widths(model) == (8, 16)


def test_options_reach_the_choice():
    model = Net()
    slim(model, inputs(), 0.3, round_to=4, exclude=["stem"])
    assert widths(model) == (16, 8)
    model = Net()
    slim(model, inputs(), 0.3, cap=0.5, scope="global", min_channels=8, target="channels", threshold=1e9)
    assert widths(model) == (8, 16)


def test_what_is_left_can_be_cut_again():
    model = Net()
    for width in (8, 4, 2):
        slim(model, inputs())
        assert widths(model) == (width, 2 * width)


def test_the_rest_of_the_process_is_as_it_was():
    model = Net()
    model.register_buffer("calls", torch.zeros(()))
    model.norm.eval()

    def counting(model, batch):
        model.calls.add_(1)
        return loss(model, batch)

    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim(model, inputs(), criterion="taylor", batches=data(), loss=counting)
    assert model.calls == 0
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_latency_is_measured_and_reported(monkeypatch):
    model, seconds = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4)), [0.0]

    def pass_time(module, args, output):
        seconds[0] += module.weight.shape[0] + 36  # 100 before; 50 with 14 channels

    handle = model[0].register_forward_hook(pass_time)
    monkeypatch.setattr(decide, "Stopwatch", partial(Stopwatch, clock=lambda: seconds[0]))
    report = slim(model, torch.randn(8, 4), 0.5, target="latency")
    handle.remove()
    assert model[0].out_features == 14
    assert report.latency.chosen.ratio == 0.5
    assert "interleaved runs on cpu" in str(report)


def test_global_ranking_by_what_layers_do_not_share_is_remarked():
    assert "not comparable" in str(slim(Net(), inputs(), scope="global", criterion=WeightNorm()))
    assert "not comparable" not in str(slim(Net(), inputs(), scope="global", criterion="gamma"))
    assert "not comparable" not in str(slim(Net(), inputs()))
