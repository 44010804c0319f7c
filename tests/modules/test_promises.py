"""Other people's modules, unmodified, under MaskUpdater: every promise, module by module."""

from importlib.metadata import version

import pytest
import torch
from helpers import same, weights
from modules.cases import CASES
from modules.page import row, rows
from modules.runs import DENSITY, EVERY
from modules.subject import EPOCHS, STEPS

pytestmark = [
    pytest.mark.modules,
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
    pytest.mark.parametrize("case", CASES, ids=lambda case: case.name),
]


def shares(shapes, total):
    """Erdos-Renyi-Kernel by bisection: every layer lives in proportion to the sum of its dimensions, and at most all.

    Evci et al. 2020, section 3; the code under test removes layers that overflow one by one instead.
    """

    def live(scale):
        return {name: min(shape.numel(), scale * sum(shape)) for name, shape in shapes.items()}

    low, high = 0.0, float(total)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(live(middle).values()) < total else (low, middle)
    return live(high)


def test_exactly_the_planned_weights_live_after_every_step_and_they_move(case, runs):
    watch, masks = runs(case).whole.watch, runs(case).whole.masks
    shapes = {name: mask.shape for name, mask in masks.items()}
    total = round(DENSITY * sum(shape.numel() for shape in shapes.values()))
    assert len(watch.counts) == EPOCHS * STEPS
    assert all(counts == watch.counts[0] for counts in watch.counts)
    assert sum(watch.counts[0].values()) == total
    assert all(abs(watch.counts[0][name] - share) < 1 for name, share in shares(shapes, total).items())
    moved = [step for step in range(2, EPOCHS * STEPS + 1) if watch.masks[step - 1] != watch.masks[step - 2]]
    assert moved == list(range(EVERY, EPOCHS * STEPS, EVERY))  # what grew after the last step would learn nothing


def test_every_forward_pass_sees_zeros_where_weights_are_dead(case, runs):
    watch = runs(case).whole.watch
    assert {name for name, passes in watch.seen.items() if passes >= EPOCHS * STEPS} >= watch.used
    assert len(watch.used) > len(watch.seen) / 2
    assert (watch.leaks, watch.state_leaks) == (0, 0)


def test_a_run_that_is_resumed_equals_the_one_without_a_break_bit_for_bit(case, runs):
    whole, again = runs(case).whole, runs(case).again
    assert len(again.watch.counts) < EPOCHS * STEPS
    assert same(whole.masks, again.masks)
    assert same(whole.weights, again.weights)
    assert same(whole.state, again.state)
    assert len(whole.state) > 0


def test_a_checkpoint_loads_strictly_into_the_module_without_this_package(case, runs):
    path = runs(case).checkpoint
    saved = torch.load(path, weights_only=case.plain)["state_dict"]
    subject = case.subject()
    plain = subject.module(subject.make())
    plain.load_state_dict(saved, strict=True)
    live = runs(case).whole.watch.counts[0]
    assert {name: int((plain.state_dict()[name] != 0).sum()) <= k for name, k in live.items()} == dict.fromkeys(
        live, True
    )
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert [name for name in foreign if "lightning_sparse" in name] == []
    assert bool(foreign) != case.plain


def test_the_finished_module_is_a_plain_one_with_zeros_and_the_same_answers(case, runs):
    run, subject = runs(case).whole, case.subject()
    run.updater.sparsifier.finalize()
    torch.manual_seed(5)
    plain = subject.module(subject.make()).eval()
    plain.load_state_dict(weights(run.trained), strict=True)
    with torch.no_grad():
        before, after = subject.answers(run.trained.eval()), subject.answers(plain)
    assert before.isfinite().all()
    assert torch.equal(before, after)
    live = run.watch.counts[0]
    assert all(0 < int((plain.get_parameter(name) != 0).sum()) <= k for name, k in live.items())


def test_the_page_says_what_was_run(case, runs):
    run = runs(case).whole
    sizes = {name: mask.numel() for name, mask in run.masks.items()}
    parameters = sum(weight.numel() for weight in run.trained.parameters())
    installed = version(case.package).partition("+")[0]
    assert row(case, installed, run.watch.counts[0], sizes, parameters) in rows()
