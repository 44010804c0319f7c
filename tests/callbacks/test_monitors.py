"""The best model under schedules that begin dense is the best sparse one, where that is asked for, and else a warning.

Three steps an epoch; the validation losses of the epochs are given. The final density is reached at step 9, the end of
the third epoch, before its validation.
"""

import warnings

import pytest
import torch
from helpers import Net, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_sparse import ACDC, GMP, L0, MEST, STR, GlobalMagnitude, GraNet, MaskUpdater, RigL, Static, TopKAST

FALLING = {
    "gmp": GMP(every=3, stop=9),
    "gmp at its stop": GMP(every=4, stop=9),
    "global_magnitude": GlobalMagnitude(stop=9),
    "lottery": GlobalMagnitude(rounds=3, stop=9, rewind="init"),
    "granet": GraNet(every=4, end=9, stop=1.0),
    "acdc": ACDC(begin=2, every=3, stop=9, last=2),
    "mest": MEST(variant="em_s", every=4, stop=9),
    "str": STR(every=3, stop=9),
    "l0": L0(every=3, begin=0, stop=9),
}
STEADY = [Static(), RigL(every=4), TopKAST(every=4)]  # masks move after a first validation
LOSSES = [0.1, 0.2, 0.9, 0.5, 0.6, 0.7]


class Judged(Net):
    def __init__(self, losses=LOSSES, name="val_loss"):
        super().__init__()
        self.losses, self.name = losses, name

    def validation_step(self, batch, batch_idx):
        loss = self.losses[self.current_epoch]
        self.log_dict({self.name or "val_loss": loss, "val_accuracy": -loss})


class Watched:
    """A fit, what was best in it, and the warnings about that."""

    def __init__(self, folder, algorithm, *others, reset=True, losses=LOSSES, again=None, start=None, **watch):
        model = again.model if again else Judged(losses, watch.get("monitor", "val_loss"))
        model.losses = losses
        self.updater = again.updater if again else MaskUpdater(algorithm, 0.25, reset_monitors=reset)
        self.best = ModelCheckpoint(folder, "{epoch}", **{"monitor": "val_loss", **watch})
        settings = {"max_epochs": len(losses), "enable_checkpointing": True, "num_sanity_val_steps": 0}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.fit = trainer([self.updater, self.best, *others], **settings)
            self.fit.fit(model, loader(4, 12), loader(4, 4), ckpt_path=start)
        self.said = [str(w.message) for w in said if "density falls" in str(w.message)]
        self.model = model

    @property
    def epoch(self):
        return torch.load(self.best.best_model_path, weights_only=True)["epoch"]


@pytest.mark.parametrize("algorithm", FALLING.values(), ids=FALLING)
def test_the_best_model_is_the_best_of_the_final_density(tmp_path, algorithm):
    run = Watched(tmp_path, algorithm)
    assert (run.epoch, run.said) == (3, [])
    assert float(run.best.best_model_score) == 0.5
    state = torch.load(run.best.best_model_path, weights_only=True)["state_dict"]
    assert sum(int((state[name] != 0).sum()) for name in run.updater.masks) <= 532
    assert run.updater.density() == 0.25


def test_without_a_reset_the_best_model_is_an_early_one_and_the_start_says_so(tmp_path):
    run = Watched(tmp_path, GMP(every=3, stop=9), EarlyStopping("val_loss", patience=99), reset=False)
    assert run.epoch == 0
    (text,) = run.said
    assert all(word in text for word in ("EarlyStopping, ModelCheckpoint", "reset_monitors=True", "denser"))


@pytest.mark.parametrize("algorithm", STEADY, ids=lambda a: type(a).__name__)
def test_nothing_is_said_or_reset_where_the_density_does_not_fall(tmp_path, algorithm):
    for reset in (False, True):
        run = Watched(tmp_path / str(reset), algorithm, reset=reset)
        assert (run.epoch, run.said) == (0, [])


def test_nothing_is_said_where_nothing_monitors(tmp_path):
    assert Watched(tmp_path, GMP(every=3, stop=9), reset=False, monitor=None, losses=LOSSES[:3]).said == []


def test_larger_may_be_better(tmp_path):
    run = Watched(tmp_path, GMP(every=3, stop=9), monitor="val_accuracy", mode="max")
    assert (run.epoch, float(run.best.best_model_score)) == (3, -0.5)


def test_the_best_few_are_all_of_the_final_density(tmp_path):
    run = Watched(tmp_path, GMP(every=3, stop=9), save_top_k=2)
    epochs = {torch.load(path, weights_only=True)["epoch"] for path in run.best.best_k_models}
    assert epochs == {3, 4}  # 0.5 and 0.6


def test_early_stopping_gets_its_patience_back(tmp_path):
    stop = EarlyStopping("val_loss", patience=3)
    run = Watched(tmp_path, GMP(every=3, stop=9), stop)  # best 0.1; 0.2, then anew: best 0.9, 0.5; 0.6, 0.7
    assert (run.fit.current_epoch, stop.wait_count, float(stop.best_score)) == (6, 2, 0.5)
    strict = EarlyStopping("val_loss", patience=3)
    assert Watched(tmp_path / "not", GMP(every=3, stop=9), strict, reset=False).fit.current_epoch == 4


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_may_watch_from_above(tmp_path, mode):
    sign = 1 if mode == "min" else -1
    stop = EarlyStopping("val_loss", patience=2, mode=mode)
    run = Watched(tmp_path, GMP(every=3, stop=9), stop, losses=[sign * x for x in (0.1, 0.2, 0.9, 0.95, 0.8, 0.85)])
    assert (run.fit.current_epoch, stop.best_score.item()) == (6, pytest.approx(sign * 0.8))


def test_monitors_are_reset_once_also_after_a_resume(tmp_path):
    """GraNet's masks move on after the final density, and so do the bests."""
    algorithm = GraNet(every=3, end=9, stop=1.0)
    losses = [0.1, 0.2, 0.5, 0.9, 0.9, 0.9]
    assert Watched(tmp_path / "whole", algorithm, losses=losses).epoch == 2
    first = Watched(tmp_path / "part", algorithm, losses=losses[:4], save_last=True)
    again = Watched(tmp_path / "part", algorithm, losses=losses, start=first.best.last_model_path, save_last=True)
    assert again.updater.sparsifier.updates > first.updater.sparsifier.updates >= 3
    assert (again.epoch, float(again.best.best_model_score)) == (2, 0.5)


def test_a_run_resumed_before_the_final_density_is_reset_there(tmp_path):
    algorithm = GMP(every=3, stop=9)
    first = Watched(tmp_path, algorithm, losses=LOSSES[:2], save_last=True)
    assert first.epoch == 0
    assert Watched(tmp_path, algorithm, start=first.best.last_model_path, save_last=True).epoch == 3


def test_monitors_of_a_density_know_what_they_wait_for(tmp_path):
    run = Watched(tmp_path, GMP(every=3, stop=9), reset=False, monitor="density/total")
    assert run.said == []
    kept = Watched(tmp_path / "kept", GMP(every=3, stop=9), monitor="density/total")
    assert kept.epoch == 0


def test_a_log_density_is_a_loss_like_any_other(tmp_path):
    """What normalizing flows and density estimators monitor."""
    assert Watched(tmp_path, GMP(every=3, stop=9), monitor="val_log_density").epoch == 3


@pytest.mark.parametrize("name", ["gmp", "global_magnitude", "lottery", "granet"])
def test_a_second_fit_at_the_final_density_is_neither_warned_of_nor_reset(tmp_path, name):
    algorithm = FALLING[name]
    first = Watched(tmp_path, algorithm)
    second = Watched(tmp_path / "again", algorithm, again=first, losses=[0.05, 0.2, 0.9, 0.5])
    assert second.epoch == 0
    first.updater.reset_monitors = False
    assert Watched(tmp_path / "third", algorithm, again=first, losses=LOSSES[:4]).said == []


@pytest.mark.parametrize("name", ["acdc", "mest"])
def test_a_second_fit_that_grows_again_is_warned_of_and_reset(tmp_path, name):
    first = Watched(tmp_path, FALLING[name])
    assert Watched(tmp_path / "again", FALLING[name], again=first).epoch == 3
    first.updater.reset_monitors = False
    assert Watched(tmp_path / "third", FALLING[name], again=first).said != []


def test_files_that_were_written_stay(tmp_path):
    run = Watched(tmp_path, GMP(every=3, stop=9))
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0.ckpt", "epoch=3.ckpt"}
    assert run.best.best_model_path.endswith("epoch=3.ckpt")
