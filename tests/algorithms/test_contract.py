"""What every algorithm promises inside a Trainer; a new one is one line in contract.CASES."""

import copy
import pickle

import pytest
import torch
from contract import ACCUMULATED, CASES, OPTIMIZERS, Run, budget, matrix, steps, stops, train
from helpers import LIVE, TOTAL, body, same

MATRIX = matrix(OPTIMIZERS, ACCUMULATED)
CELLS = [pytest.param(cell.values, marks=cell.marks) for cell in MATRIX]


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: "-".join(map(str, cell)))
def cell(request):
    return request.param


@pytest.fixture(scope="module")
def run(cell, tmp_path_factory) -> Run:
    """One fit with dropout and shuffling, that all tests of a cell look at."""
    return train(*cell, tmp_path_factory.mktemp("run"))


def test_every_algorithm_meets_every_setting_that_is_not_slow():
    met = {(name, value) for name, *pair in (cell.values for cell in MATRIX if not cell.marks) for value in pair}
    assert met == {(name, value) for name in CASES for value in (*OPTIMIZERS, *ACCUMULATED)}


def test_no_forward_pass_sees_a_nonzero_dead_weight(run, cell):
    assert run.recorder.forwards == 3 * steps(1)  # three layers in every micro-batch
    assert run.recorder.leaks == 0


def test_optimizer_state_of_dead_weights_is_exactly_zero_after_every_step(run):
    per_weight = [value for key, value in run.state.items() if value.ndim >= 2]
    assert per_weight, "the optimizer keeps nothing: there is nothing to look at"
    assert (run.recorder.last_leaks if run.case.latent else run.recorder.state_leaks) == 0


def test_live_counts_are_the_promised_integers_after_every_step(run, cell):
    assert len(run.recorder.counts) == steps(cell[2])
    totals = [sum(counts.values()) for counts in run.recorder.counts]
    assert totals == [budget(run.case, step) for step in range(1, len(totals) + 1)]
    if run.case.keeps == "layers":
        assert all(counts == LIVE for counts in run.recorder.counts)
    else:
        assert sum(run.recorder.counts[-1].values()) == TOTAL


def test_budget_moves_between_layers_only_where_that_is_the_algorithm(run):
    shares = {tuple(counts[name] / sum(counts.values()) for name in LIVE) for counts in run.recorder.counts}
    assert (len(shares) == 1) == (run.case.keeps in ("layers", "own layers"))


def test_masks_move_at_updates_and_at_no_other_step(run, cell):
    changed = [step for step in range(2, len(run.recorder.masks) + 1) if run.recorder.moved_at(step)]
    assert all(step % 3 == 0 for step in changed)
    assert len(changed) >= 3 if run.case.moves else not changed


def test_weights_outside_the_masks_are_zero_at_the_end(run):
    assert all(bool((run.weights[name][~mask] == 0).all()) for name, mask in run.masks.items())
    assert all(bool(run.weights[name][mask].any()) for name, mask in run.masks.items())


@pytest.mark.parametrize("part", ["on an update", "epoch end", "second epoch"])
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(run, cell, part):
    step = stops(cell[2])[part]
    again = train(*cell, run.folder, start=run.folder / f"step={step}.ckpt", seed=5)
    assert len(again.recorder.counts) == steps(cell[2]) - step
    assert same(run.masks, again.masks)
    assert same(run.weights, again.weights)
    assert same(run.state, again.state)


def test_a_checkpoint_loads_without_this_package(run):
    checkpoint = torch.load(run.folder / "step=6.ckpt", weights_only=True)
    plain = torch.nn.ModuleDict({"net": body()})
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    zeros = {name: int((value == 0).sum()) for name, value in plain.named_parameters() if name in LIVE}
    sizes = {name: value.numel() for name, value in plain.named_parameters() if name in LIVE}
    live = run.recorder.counts[5]
    grown = sum(zeros.values()) - sum(sizes[name] - live[name] for name in LIVE)  # grown at step 6: live, and still 0
    assert all(zeros[name] >= sizes[name] - live[name] for name in LIVE)
    assert 0 <= grown <= 0.5 * sum(live.values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_callback_keeps_the_masks(run, copied):
    other = copied(run.updater)
    assert same(other.masks, run.masks)
    assert other.density() == sum(int(mask.sum()) for mask in run.masks.values()) / 2128
    other.masks["net.0.weight"].zero_()
    assert same(run.updater.masks, run.masks), "the copy shares memory with its original"
