"""Long runs, with an update of the masks after every step: memory stays flat, and counts exact.

Time per step is measured by ``benchmarks/soak.py``; what a test can say of it is that nothing piles up.
"""

import gc
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import LIVE, loader, net, trainer
from lightning.pytorch import Callback
from runs import hooks
from torch import Tensor, nn

from lightning_sparse import DSR, GMP, L0, STR, Algorithm, DensityLogger, MaskUpdater, RigL, SparseMomentum, Sparsifier
from lightning_sparse.watch import SparsityWatch

SIZE, TARGET = 96 + 48, 36  # weights of the two layers, and a quarter of them
RAMPS = ("gmp", "str", "l0")


def algorithm(name: str, steps: int) -> Algorithm:
    """One that moves masks after every one of so many steps."""
    return {
        "rigl": lambda: RigL(every=1, stop=steps),
        "sparse_momentum": lambda: SparseMomentum(every=1, stop=steps),
        "gmp": lambda: GMP(every=1, stop=steps),
        "dsr": lambda: DSR(every=1, stop=steps, threshold=0.02),
        "str": lambda: STR(every=1, stop=steps),
        "l0": lambda: L0(every=1, begin=0, stop=steps),
    }[name]()


@pytest.fixture(autouse=True)
def _only_what_is_new():
    """Leave what was there before to itself: looking at all of Lightning takes longer than the test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Memory(NamedTuple):
    """What is held, by four counts that a leak would raise with every step."""

    objects: int
    tensors: int
    blocks: int  # of Python's allocator: numbers and strings too
    bytes: int  # of the process

    @classmethod
    def now(cls) -> "Memory":
        gc.collect()
        found = gc.get_objects()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if sys.platform == "linux" else 0
        tensors = sum(issubclass(type(thing), Tensor) for thing in found)
        return cls(len(found), tensors, sys.getallocatedblocks(), resident)


def flat(before: Memory, after: Memory, steps: int, blocks: float = 0.5, room: int = 4 << 20) -> None:
    """Less than a tenth of an object and some share of a block a step, no tensor; ``room`` in bytes for malloc."""
    assert after.tensors <= before.tensors
    assert after.objects - before.objects < steps / 10
    assert after.blocks - before.blocks < steps * blocks
    assert after.bytes - before.bytes < room


def live(sparsifier: Sparsifier) -> list[int]:
    return [int(mask.count_nonzero()) for mask in sparsifier.masks.values()]


def soak(name: str, steps: int, warm: int) -> tuple[Memory, Memory]:
    """Memory after ``warm`` steps and after all; the counts are looked at after every one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    wanted = algorithm(name, steps)
    sparsifier = Sparsifier(model, wanted, 0.25, optimizers=[optimizer], allocation="uniform", total_steps=steps)
    x, y = torch.randn(32, 4, 8), torch.randn(32, 4, 4)
    before = None
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (model(x[step % 32]) - y[step % 32]).square().mean().backward()
        optimizer.step()
        counts = live(sparsifier)
        if name == "rigl":
            assert counts == [24, 12], step
        elif name in RAMPS:  # eq. 1 of Zhu & Gupta 2017, to the nearest integer
            assert abs(sum(counts) - (TARGET + (SIZE - TARGET) * (1 - step / steps) ** 3)) < 0.5001, step
        else:
            assert sum(counts) == TARGET, step
        if step == warm:
            before = Memory.now()
    assert before is not None
    assert (sparsifier.steps, sparsifier.updates) == (steps, steps)
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1
    assert all(bool((model.get_parameter(key)[~mask] == 0).all()) for key, mask in sparsifier.masks.items())
    return before, Memory.now()


@pytest.mark.long
@pytest.mark.parametrize("name", ["rigl", "sparse_momentum", "gmp", "dsr", "str", "l0"])
def test_masks_that_move_after_every_step_cost_no_memory(name):
    steps = 1000 if name == "rigl" else 500
    flat(*soak(name, steps, 100), steps - 100)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "steps"),
    [("rigl", 20_000), *((name, 1_000) for name in ("sparse_momentum", "gmp", "dsr", "str", "l0"))],
)
def test_a_long_run_costs_no_memory(name, steps):
    flat(*soak(name, steps, 300), steps - 300)


class Probe(Callback):
    """How much there is of everything that could pile up in a Trainer, every so many steps."""

    def __init__(self, every: int, half: int) -> None:
        self.every, self.half, self.seen, self.memory = every, half, [], []

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
        if len(self.seen) in (self.half, 2 * self.half):
            self.memory.append(Memory.now())


def piles(steps: int, monkeypatch) -> None:
    """Nothing in a Trainer grows in the second half of a run."""
    every = steps // 20
    monkeypatch.setattr("lightning_sparse.watch._ROWS", 16)  # reached in the first half
    updater, probe = MaskUpdater(RigL(every=1, stop=steps), 0.25), Probe(every, 10)
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
    flat(*probe.memory, steps // 2, blocks=1.0)  # the probe itself keeps rows


@pytest.mark.long  # in fewer steps, what other threads allocate meanwhile is of the size of a leak
def test_nothing_piles_up_in_a_trainer(monkeypatch):
    piles(1_000, monkeypatch)


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
