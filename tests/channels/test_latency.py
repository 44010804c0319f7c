"""Latency is measured: in turns, on trial cuts that are undone, by a clock that tests can set."""

import itertools

import pytest
import torch
from channels.handmade import alone, graph
from torch import nn

from lightning_sparse.channels import decide as deciding
from lightning_sparse.channels.decide import decide
from lightning_sparse.channels.latency import Latency, Stopwatch, Trial
from lightning_sparse.channels.options import Choice

HIDDEN = 20


class Clocked(nn.Module):
    """Two Linears that take a second, and one for each hidden channel, of a clock of their own."""

    def __init__(self, bias: float = 1.0, seconds: float = 1.0):
        super().__init__()
        self.first, self.second = nn.Linear(3, HIDDEN), nn.Linear(HIDDEN, 2)
        self.clock, self.bias, self.seconds = 0.0, bias, seconds
        self.widths = []

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        width = self.first.weight.shape[0]
        self.widths.append(width)
        self.clock += self.bias + self.seconds * width
        return self.second(self.first(x))


def timed(model, **settings):
    found = graph(model, h=["first.weight:0", "first.bias:0", "second.weight:1"])
    data = torch.zeros(1, 3)
    watch = Stopwatch(model, found, lambda: model(data), clock=lambda: model.clock, **settings)
    return found, watch


def decided(model, keep, **settings):
    found, watch = timed(model)
    scores = {"h": torch.arange(float(HIDDEN))}
    choice = Choice(keep, target="latency", **settings)
    return decide(model, found, scores, watch.run, choice, stopwatch=watch)


def test_the_channels_that_take_the_share_of_the_time_are_found():
    model = Clocked(bias=1.0)  # 21 seconds; 11 with half of the channels
    decision = decided(model, 11 / 21)
    assert decision.kept["h"].tolist() == list(range(10, 20))
    assert decision.latency.chosen == Trial(channels=0.5, before=21.0, after=11.0)


@pytest.mark.parametrize("keep", [0.2, 0.35, 0.6, 0.9])
def test_the_nearest_of_what_was_tried_is_taken(keep):
    decision = decided(Clocked(), keep)
    ratios = {n: (1 + n) / 21 for n in range(1, HIDDEN + 1)}
    nearest = min(abs(ratio - keep) for ratio in ratios.values())
    assert abs(ratios[len(decision.kept["h"])] - keep) <= nearest + 1 / 21 / 2
    assert decision.latency.chosen.ratio == pytest.approx(ratios[len(decision.kept["h"])])
    tried = [abs(trial.ratio - keep) for trial in decision.latency.trials]
    assert min(tried) == abs(decision.latency.chosen.ratio - keep)


def test_a_target_that_cannot_be_met_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"keep=0\.3 of the latency cannot be met: .* 0\.50 of it stays on cpu"):
        decided(Clocked(bias=HIDDEN - 2.0), 0.3)  # 19 with one channel, 38 with all


def test_the_whole_model_and_the_cut_one_take_turns_and_the_first_run_of_a_turn_is_not_timed():
    model = Clocked()
    _, watch = timed(model, rounds=2, repeats=3)
    trial = watch.time({"h": torch.tensor([3, 4])})
    assert model.widths == [HIDDEN] * 4 + [2] * 4 + [HIDDEN] * 4 + [2] * 4
    assert (trial.before, trial.after, trial.channels) == (21.0, 3.0, 0.1)
    assert watch.runs == 6


def test_medians_do_not_hear_of_runs_that_were_held_up():
    model = Clocked()
    _, watch = timed(model, rounds=1, repeats=3)
    readings = itertools.count()
    held = {1, 9}  # a run of the whole model and one of the cut one end there, of six readings each

    def clock():
        model.clock += 1e6 if next(readings) in held else 0.0
        return model.clock

    watch.clock = clock
    trial = watch.time({"h": torch.tensor([3, 4])})
    assert (trial.before, trial.after) == (21.0, 3.0)


def test_a_machine_that_gets_slower_hits_both_alike():
    model = Clocked()
    _, watch = timed(model, rounds=2, repeats=2)

    def slower():  # from the second round on everything takes twice as long
        model.bias, model.seconds = (2.0, 2.0) if len(model.widths) >= 6 else (1.0, 1.0)
        return model(torch.zeros(1, 3))

    watch.run = slower
    trial = watch.time({"h": torch.tensor([3, 4])})
    assert (trial.before, trial.after) == ((21 + 42) / 2, (3 + 6) / 2)
    assert trial.ratio == 3 / 21


def test_measuring_leaves_the_model_as_it_was():
    model = Clocked()
    model.train()
    model.second.eval()
    model.first.weight.grad = torch.ones(HIDDEN, 3)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    decided(model, 0.5)
    for name, p in model.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])
    assert model.first.weight.grad.shape == (HIDDEN, 3)
    assert (model.training, model.first.training, model.second.training) == (True, True, False)
    assert (model.first.out_features, model.second.in_features) == (HIDDEN, HIDDEN)
    assert torch.equal(state, torch.get_rng_state())


def test_an_error_in_a_trial_leaves_the_model_as_it_was():
    model = Clocked()
    _, watch = timed(model)

    def fail():
        if model.first.weight.shape[0] < HIDDEN:
            raise RuntimeError("hard-coded")
        return model(torch.zeros(1, 3))

    watch.run = fail
    with pytest.raises(RuntimeError, match="hard-coded"):
        watch.time({"h": torch.tensor([0])})
    assert model.first.weight.shape == (HIDDEN, 3)
    assert model.first.out_features == HIDDEN


def test_nothing_is_measured_where_nothing_is_asked():
    for settings in ({"keep": 1.0}, {"keep": 0.5, "threshold": 9.5}):
        model = Clocked()
        decision = decided(model, **settings)
        assert model.widths == []
        assert decision.latency is None
        assert len(decision.kept["h"]) == (HIDDEN if settings["keep"] == 1 else 10)


def test_the_report_says_what_was_measured_and_where():
    trial = Trial(0.25, before=0.1, after=0.04)
    text = str(Latency(trial, (trial, trial), "cpu, 2 threads", 15))
    assert "100 ms -> 40 ms (40%)" in text
    assert "25% of the channels" in text
    assert "15 interleaved runs on cpu, 2 threads; 2 cuts tried" in text
    assert timed(Clocked())[1].where == f"cpu, {torch.get_num_threads()} threads"


def test_other_targets_and_wrong_arguments_go_where_they_belong():
    found, sizes = alone(4, 4)
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in sizes.items()})
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    kept = decide(model, found, scores, None, Choice(0.5, scope="layer")).kept
    assert {n: k.tolist() for n, k in kept.items()} == {"a": [2, 3], "b": [2, 3]}
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 2"):
        decide(model, found, scores, None, Choice(2, target="latency"))
    assert decide(model, found, {}, None, Choice()).kept == {}
    assert deciding.Decision({}).latency is None
