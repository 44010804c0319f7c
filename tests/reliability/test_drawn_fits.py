"""The promises of the package under a Trainer, with runs that nobody wrote down."""

import copy
import pickle
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import DRAW_ANEW, EPOCH, SETTINGS, STEPS, Case, cases
from helpers import saver, trainer
from hypothesis import given, reject, seed, settings
from lightning.pytorch import Callback, LightningModule
from loops import BATCH, dead, differences, flat, task_loss, watched
from test_properties import count_problems, refused
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_sparse import MaskUpdater


class Drawn(LightningModule):
    """A drawn model in a module that knows nothing of sparsity."""

    def __init__(self, case: Case, first: int) -> None:
        super().__init__()
        self.case, self.net = case, case.model(first)
        self.example_input_array = torch.zeros(1, 8)
        if case.precision == "64-true":  # Lightning loads a checkpoint first and converts then: float32 would round it
            self.double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return task_loss(self.net, batch)

    def configure_optimizers(self):
        return self.case.stepper(self.net)


class Counts(Callback):
    """Looks after each batch."""

    def __init__(self, case: Case, updater: MaskUpdater) -> None:
        self.case, self.updater, self.problems = case, updater, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        engine = self.updater.sparsifier
        self.problems += count_problems(engine, self.case, trainer.global_step)
        self.problems += ["dead weights"] * dead(dict(pl_module.named_parameters()), engine.masks)


def fit(case: Case, folder: Path, start: str | None) -> tuple[MaskUpdater, dict[str, Any], list[str]]:
    """Three epochs with shuffled batches; what came out, and what was wrong on the way."""
    wanted = {"allocation": case.allocation, "pattern": case.pattern, "init": case.init, "seed": case.seed}
    updater = MaskUpdater(case.algorithm, case.density, **wanted)
    model = Drawn(case, case.seed + bool(start))
    before, counts = flat(model.state_dict()), Counts(case, updater)
    generator = torch.Generator().manual_seed(case.seed)
    n = EPOCH * case.accumulate * BATCH
    data = TensorDataset(torch.randn(n, 8, generator=generator), torch.arange(n) % 3)
    torch.manual_seed(case.seed + bool(start))
    run = trainer(
        [updater, counts, *([] if start else [saver(folder, case.again)])],
        max_epochs=STEPS // EPOCH,
        accumulate_grad_batches=case.accumulate,
        precision=case.precision,
        gradient_clip_val=0.5 if case.clip and "fused" not in case.optimizer else None,
        enable_checkpointing=not start,
    )
    with watched(model, lambda: updater.masks) as seen:
        try:
            run.fit(model, StatefulDataLoader(data, BATCH, shuffle=True), ckpt_path=start and folder / start)
        except ValueError as error:
            if start:
                raise
            refused(error, before, model)
            reject()
    problems = counts.problems + [f"{seen['leaks']} dead weights were seen in forward passes"] * bool(seen["leaks"])
    remembered = run.optimizers[0].state_dict()["state"]
    states = {"model": model.state_dict(), "optimizer": remembered, "masks": updater.state_dict()}
    return updater, states, problems


def check(case: Case) -> None:
    """A run and one that goes on from a checkpoint end alike, and keep every promise."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        updater, states, problems = fit(case, Path(name), None)
        _, others, more = fit(case, Path(name), f"step={case.again}.ckpt")
        stored = torch.load(Path(name) / f"step={case.again}.ckpt", weights_only=True)
    assert not problems + more
    assert differences(flat(states), flat(others)) == []
    masks = updater.masks
    for twin in (copy.deepcopy(updater), pickle.loads(pickle.dumps(updater))):
        assert differences(flat(masks), flat(twin.masks)) == []
    dense = Drawn(case, 0)
    dense.load_state_dict(stored["state_dict"])
    assert dead(dict(dense.named_parameters()), saved(updater, stored)) == 0


def saved(updater: MaskUpdater, stored: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The masks in a checkpoint."""
    other = MaskUpdater()
    other.load_state_dict(stored["callbacks"][updater.state_key])
    return other.masks


@settings(SETTINGS, max_examples=6)
@given(cases())
def test_the_promises_hold_under_a_trainer(case):
    check(case)


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_the_promises_hold_in_a_hundred_fits(part):
    begin = random.SystemRandom().randrange(2**32) if DRAW_ANEW else 0

    @seed(begin + part)
    @settings(SETTINGS, max_examples=10, derandomize=False, database=None)
    @given(cases())
    def many(case):
        check(case)

    many()
