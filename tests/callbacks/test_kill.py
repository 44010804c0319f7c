"""A process that is killed at any moment goes on from its last checkpoint as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import DENSITY, net, same, saver, state_tensors, stateful, trainer, weights

from lightning_sparse import MaskUpdater, RigL

SCRIPT = """
import sys, time, torch
sys.path[:0] = {path!r}
torch.set_num_threads(1)
from lightning.pytorch import Callback
from helpers import net
from test_kill import fitted

class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.02)

fitted(sys.argv[1], sys.argv[2], extra=[Slow()])
"""


def fitted(optimizer, folder, *, start=None, seed=1, extra=()):
    """Four epochs of fourteen steps; a checkpoint after every second step."""
    updater, model = MaskUpdater(RigL(every=3, stop=1.0), DENSITY), net(optimizer, 0.25, seed=seed)
    callbacks = [updater, saver(folder, 2), *extra]
    fit = trainer(callbacks, max_epochs=4, enable_checkpointing=True)
    fit.fit(model, stateful(4, 56, shuffle=True), ckpt_path=start)
    return updater.masks, weights(model), state_tensors(fit.optimizers[0])


def newest(folder: Path) -> Path:
    """The last checkpoint that was written to its end."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: int(p.stem.partition("=")[2]), reverse=True):
        try:
            torch.load(path, weights_only=True)
        except Exception:  # torn by the kill
            continue
        return path
    raise AssertionError("no checkpoint survived")


def kill_at_random(process, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.ckpt"))) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it never came to its third checkpoint"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(optimizer, tmp_path):
    here = Path(__file__).parent
    script = SCRIPT.format(path=[str(here), str(here.parent), str(here.parent.parent)])
    command = [sys.executable, "-W", "ignore", "-c", script, optimizer, str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        kill_at_random(process, tmp_path / "killed")
    start = newest(tmp_path / "killed")
    again = fitted(optimizer, tmp_path / "killed", start=start, seed=9)
    whole = fitted(optimizer, tmp_path / "whole")
    assert all(same(left, right) for left, right in zip(whole, again, strict=True)), f"killed after {start.stem}"
