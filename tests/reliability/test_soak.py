"""Long runs, with an update of the masks after every step: nothing piles up, and counts are exact.

What a step costs, and the memory of the process, is measured by ``benchmarks/soak.py``: in 20,000 steps of RigL.
"""

import gc
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import LIVE, loader, net, trainer
from lightning.pytorch import Callback
from runs import hooks
from torch import nn

from lightning_sparse import DensityLogger, MaskUpdater, RigL, Sparsifier
from lightning_sparse.watch import SparsityWatch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import soak
from held import counted, leaks, more
from moving import ALGORITHMS, CONTROLS, Leaky, Loop

STEPS, WARM = 120, 40


@pytest.fixture(autouse=True)
def _only_what_is_new():
    """Leave what was there before to itself: looking at all of Lightning takes longer than the test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    Leaky.kept.clear()


def grown(name: str) -> tuple[int, int, int]:
    """Objects, tensors and blocks more after step 120 than after step 40; counts and weights are looked at too."""
    loop, held = Loop(name, STEPS + 10), []  # ten to go: what an update needs is still held
    for step in range(1, STEPS + 1):
        loop.step(step)
        assert loop.right(step), step
        if step in (WARM, STEPS):
            held.append(counted())
    assert (loop.sparsifier.steps, loop.sparsifier.updates) == (STEPS, STEPS)
    assert hooks(loop.optimizer) == 2
    masks = loop.sparsifier.masks
    assert all(bool((loop.net.get_parameter(key)[~mask] == 0).all()) for key, mask in masks.items())
    objects, tensors, blocks = (late - early for early, late in zip(*held, strict=True))
    return objects, tensors, blocks


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masks_that_move_after_every_step_leave_nothing_behind(name):
    objects, tensors, _ = grown(name)
    assert tensors == 0
    assert objects < 20  # none, but other threads may hold some; a leak: 80


@pytest.mark.parametrize("name", CONTROLS)
def test_a_leak_of_one_thing_a_step_is_found(name):
    objects, tensors, blocks = grown(name)
    assert blocks >= STEPS - WARM
    assert (objects >= STEPS - WARM) == ("number" not in name)
    assert (tensors == STEPS - WARM) == ("mask" in name)


class Probe(Callback):
    """How much there is of everything that could pile up in a Trainer, every so many steps."""

    def __init__(self, every: int, counts: tuple[int, int]) -> None:
        self.every, self.counts, self.seen, self.held = every, counts, [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % self.every:
            return
        modules = list(pl_module.modules())
        self.seen.append(
            {
                "step hooks": hooks(trainer.optimizers[0]),
                "forward hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules),
                "tensor hooks": sum(len(w._backward_hooks or ()) for w in pl_module.parameters()),
                "keys": tuple(sorted(trainer.callback_metrics)),
                "callbacks": len(trainer.callbacks),
                "state": max(len(pickle.dumps(c.state_dict())) for c in trainer.callbacks),
            }
        )
        if trainer.global_step in self.counts:
            self.held.append(counted())


def test_nothing_piles_up_in_a_trainer(monkeypatch):
    steps, every = 200, 10
    monkeypatch.setattr("lightning_sparse.watch._ROWS", 16)  # reached in the first half
    updater, probe = MaskUpdater(RigL(every=1, stop=steps), 0.25), Probe(every, (100, 190))
    fit = trainer([updater, DensityLogger(every), probe], max_steps=steps, log_every_n_steps=every)
    fit.fit(net(), loader())
    assert (updater.sparsifier.steps, updater.sparsifier.updates) == (steps, steps)
    assert {name: int(mask.sum()) for name, mask in updater.masks.items()} == LIVE
    for key in ("step hooks", "forward hooks", "tensor hooks", "keys", "callbacks"):
        assert len({row[key] for row in probe.seen}) == 1, key
    assert probe.seen[-1]["step hooks"] == 2
    assert "density" in probe.seen[-1]["keys"]
    first, second = (max(row["state"] for row in rows) for rows in (probe.seen[:10], probe.seen[10:]))
    assert second <= first + 64  # numbers get longer
    (objects, tensors, _), (later, tensors_later, _) = probe.held
    assert tensors_later == tensors  # after the last step, what an update needs is let go
    assert later - objects < 60  # the probe's own rows are some 20; a leak: 90


@pytest.mark.long
@pytest.mark.parametrize("name", soak.PARTS)
def test_a_long_run_holds_no_more_at_its_end(name):
    ((_, row),) = soak.run([(name, 20_000 // soak.PARTS[name])])
    assert row["wrong"] == 0
    assert bool(leaks(row)) == (name in CONTROLS), row


def test_of_what_was_measured_only_the_planted_leaks_grow():
    arms = json.loads(soak.RESULTS.read_text())["arms"]
    assert set(arms) == set(soak.PARTS)
    assert {name: row["steps"] for name, row in arms.items()} == {n: 20_000 // part for n, part in soak.PARTS.items()}
    assert [name for name, row in arms.items() if row["wrong"] or (leaks(row) and name not in CONTROLS)] == []
    assert leaks(arms["leak of a mask a step"]) == ["objects", "tensors", "blocks", "bytes", "line_bytes"]
    assert leaks(arms["leak of an object a step"]) == ["objects", "blocks", "bytes", "line_bytes"]
    assert leaks(arms["leak of a number a step"]) == ["blocks", "bytes", "line_bytes"]


@pytest.mark.parametrize(
    ("values", "rise"),
    [
        ([5, 5, 5, 5, 5, 5, 5, 5], 0),
        ([5, 5, 5, 5, 5, 900, 900, 900], 0),  # pairs two apart: 0 0 0 895 895 0
        ([0, 10, 20, 30, 40, 50, 60, 70], 1),  # 20 in each of two times 10 steps
        ([0, 12, 18, 33, 500, 512, 518, 533], 1),  # 18 21 482 479 18 21: their median is 21
    ],
)
def test_growth_is_what_all_of_a_run_shares(values, rise):
    assert more(values, 10) == pytest.approx(rise, abs=0.06)


def test_densities_over_time_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr("lightning_sparse.watch._ROWS", 8)
    model = nn.Linear(10, 10)
    sparsifier, watch, counts = Sparsifier(model, RigL(stop=9), 0.5), SparsityWatch(), []
    (p,) = sparsifier.params.values()
    for n in range(1, 31):  # the n-th masks have n live weights
        p.set_mask(torch.arange(100).view(10, 10) < n)
        watch.note(sparsifier.params)
        if n == 17:
            saved = watch.state_dict()
            watch = SparsityWatch()
            watch.load_state_dict(saved)
        counts.append([round(100 * row[0]) for row in watch.densities])
    assert counts[7] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert counts[8] == counts[9] == [1, 3, 5, 7, 9]
    assert counts[-1] == [1, 5, 9, 13, 17, 21, 25, 29]
    assert Counter(map(len, counts)).keys() == set(range(1, 9))
