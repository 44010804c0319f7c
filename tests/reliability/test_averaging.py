"""Failure modes 46 to 52: callbacks that average, tune, or watch a monitor."""

import pytest
import torch
from helpers import DENSITY, LIVE, Net, loader, net, same, samples, saver, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from modes import mode
from runs import MOVING, leaks, run
from torch.utils.data import DataLoader

from lightning_sparse import GMP, DensityLogger, MaskUpdater


class Validated(Callback):
    """Dead weights that were not zero in a validation, where averaged weights are swapped in."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        (updater,) = [c for c in trainer.callbacks if isinstance(c, MaskUpdater)]
        if not trainer.sanity_checking:  # that comes before there are masks
            self.found.append(leaks(pl_module, updater.masks))


def averaged(average, first, **settings):
    updater, model, validated = MaskUpdater(MOVING, DENSITY), net(), Validated()
    pair = [average, updater] if first == "average" else [updater, average]
    trainer([*pair, validated], **{"max_epochs": 2, **settings}).fit(model, loader(), loader(8, 16))
    assert updater.sparsifier.updates >= 5
    assert leaks(model, updater.masks) == 0
    return validated.found


@mode(46, "an average over masks that move is dense (EMA)", right="sparse in validation, at the end and in checkpoints")
@pytest.mark.parametrize("first", ["average", "masks"])
def test_an_exponential_average_is_sparse(first):
    assert averaged(EMAWeightAveraging(decay=0.7), first) == [0] * 4


@mode(47, "the same under SWA", right="sparse in validation and at the end")
@pytest.mark.filterwarnings("ignore:.*Swapping scheduler.*", "ignore:.*swa_model.*")
@pytest.mark.parametrize("first", ["average", "masks"])
def test_a_stochastic_average_is_sparse(first):
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    assert averaged(swa, first, max_epochs=3) == [0] * 6


@mode(48, "an average that starts late swaps a dense copy in before that", right="that copy is sparse too")
def test_an_average_that_has_not_started_is_sparse():
    assert averaged(EMAWeightAveraging(decay=0.7, update_starting_at_step=30), "average") == [0] * 4


@mode(49, "resuming with an average", right="bit for bit the uninterrupted run")
def test_a_resumed_average_ends_as_the_uninterrupted_one(tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=8.ckpt", 5)):
        others = [EMAWeightAveraging(decay=0.7), saver(tmp_path, 8)]
        model = net("adamw", 0.25, seed=seed)
        data = stateful(shuffle=True)
        fit = run(MOVING, "", *others, model=model, data=data, start=start, enable_checkpointing=True)
        ends.append((fit.updater.masks, weights(model)))
    assert all(same(left, right) for left, right in zip(*ends, strict=True))


class Tunable(Net):
    """What the finders of Lightning want of a model."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.1, 4

    def train_dataloader(self):
        return DataLoader(samples(), batch_size=self.batch_size)

    def val_dataloader(self):
        return loader(8, 16)


def tuned(finder):
    """A fit with a finder before it, and one without."""
    ends, found = [], 4
    for others in ([finder], []):
        torch.manual_seed(1)
        model, updater = Tunable(), MaskUpdater(MOVING, DENSITY)
        model.batch_size = found
        fit = trainer([*others, updater], max_epochs=1)
        fit.fit(model)
        found = model.batch_size
        assert updater.sparsifier.steps == fit.global_step == -(-48 // found)
        assert updater.sparsifier.updates >= 2
        ends.append((updater.masks, weights(model)))
    return ends, found


@mode(
    50,
    "LearningRateFinder trains before the fit",
    right="the fit is the one without it (the rate that it finds is that of the dense model)",
)
def test_a_learning_rate_finder_leaves_no_trace(tmp_path):
    finder = LearningRateFinder(num_training_steps=5, update_attr=False, min_lr=1e-4, max_lr=1e-2)
    (with_finder, without), _ = tuned(finder)
    assert all(same(left, right) for left, right in zip(with_finder, without, strict=True))


@mode(51, "BatchSizeFinder trains before the fit", right="the fit is the one without it, at the size that was found")
def test_a_batch_size_finder_leaves_no_trace():
    finder = BatchSizeFinder(steps_per_trial=2, init_val=4, max_trials=2)
    (with_finder, without), found = tuned(finder)
    assert found == 8
    assert all(same(left, right) for left, right in zip(with_finder, without, strict=True))


@mode(52, "`density` as a monitor", right="EarlyStopping and ModelCheckpoint can watch it")
def test_callbacks_can_monitor_the_density(tmp_path):
    stop = EarlyStopping("density", mode="min", stopping_threshold=0.5, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(dirpath=tmp_path, monitor="density", mode="min", save_on_train_epoch_end=True)
    algorithm = GMP(every=12, stop=48)
    fit = run(algorithm, "sgd", stop, keep, DensityLogger(), max_epochs=4, enable_checkpointing=True)
    # by the cubic law 0.25 + 0.75 * (1 - n / 48) ** 3: 0.566 after 12 steps, 0.344 after 24
    assert fit.trainer.current_epoch == 2
    assert float(keep.best_model_score) == pytest.approx(0.34375, abs=1e-3)
    assert fit.updater.masks.keys() == LIVE.keys()
