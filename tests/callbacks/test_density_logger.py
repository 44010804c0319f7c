"""DensityLogger: numbers, where they go, and what survives."""

import csv
import pickle

import pytest
from helpers import DENSITY, LIVE, SIZES, loader, net, same, saver, stateful, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_sparse import GMP, DensityLogger, MaskUpdater, RigL, Static

RIGL = RigL(every=3, stop=1.0)  # of twelve steps, updates follow 3, 6 and 9
# By hand, forward FLOPs a sample: 6 * 4 * 4 outputs of 2 * 3 * 3 products, 20 of 96, 5 of 20; two FLOPs a product.
DENSE = {"net.0.weight": 2 * 96 * 18, "net.4.weight": 2 * 20 * 96, "net.6.weight": 2 * 5 * 20}
SHARE = sum(DENSE[name] * LIVE[name] / SIZES[name] for name in LIVE) / sum(DENSE.values())
TOTALS = {"density", "nonzero_density", "flops_share"}
HEALTH = {f"masks/{key}" for key in ("changed", "explored", "overlap", "dead_inputs", "dead_outputs")}
LAYERS = {f"{kind}/{name}" for kind in ("density", "nonzero") for name in LIVE}
KEYS = TOTALS | HEALTH | LAYERS | {"masks/training_flops_share"}


class Entries(Logger):
    """Keeps what it is told: numbers, and where pictures were shown."""

    name, version = "entries", 0

    def __init__(self):
        self.rows, self.pictures = [], []

    @property
    def experiment(self):
        return self

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))

    def add_image(self, key, picture, step, dataformats):
        self.pictures.append((step, key, picture.tolist()))


def rows(folder, algorithm=RIGL, watch=None, *, flip=False, **settings):
    """What a CSV file holds after an epoch, a dict of numbers for each step."""
    callbacks = [MaskUpdater(algorithm, DENSITY), watch or DensityLogger()]
    logger = CSVLogger(folder, name="csv", version="0")
    settings = {"max_epochs": 1, "log_every_n_steps": 1, **settings}
    trainer(callbacks[::-1] if flip else callbacks, logger=logger, **settings).fit(net(), loader())
    found: dict[int, dict[str, float]] = {}
    with (folder / "csv" / "0" / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            numbers = {key: float(value) for key, value in row.items() if value and key in KEYS}
            found.setdefault(int(row["step"]), {}).update(numbers)
    return found


@pytest.mark.parametrize(("every", "steps"), [(1, list(range(12))), (4, [0, 3, 7, 11])])
def test_every_key_is_there_from_step_0_on(every, steps, tmp_path):
    found = rows(tmp_path, log_every_n_steps=every)
    assert sorted(found) == steps
    assert {step: KEYS - row.keys() for step, row in found.items()} == {step: set() for step in steps}


def test_the_numbers_are_those_of_a_hand_count(tmp_path):
    found = rows(tmp_path, Static())
    for row in found.values():
        assert row["density"] == 0.25
        assert {name: row[f"density/{name}"] for name in LIVE} == {n: k / SIZES[n] for n, k in LIVE.items()}
        assert (row["masks/changed"], row["masks/explored"], row["masks/overlap"]) == (0, 0.25, 1)
    assert found[11]["flops_share"] == pytest.approx(SHARE)
    assert found[11]["masks/training_flops_share"] == pytest.approx(SHARE)


def test_a_dense_gradient_is_paid_for_where_it_is_needed(tmp_path):
    found = rows(tmp_path, RIGL)
    updates, steps = 3, 12
    expected = (3 * SHARE * (steps - updates) + updates * (2 * SHARE + 1)) / (3 * steps)
    assert found[11]["masks/training_flops_share"] == pytest.approx(expected)
    assert found[11]["masks/explored"] > 0.25 > found[3]["nonzero_density"] - 1e-9


def test_a_ramp_can_be_monitored(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, monitor="density", mode="min", every_n_train_steps=3, save_top_k=1)
    callbacks = [MaskUpdater(GMP(every=3, stop=9), DENSITY), DensityLogger(), keep]
    fit = trainer(callbacks, max_epochs=1, log_every_n_steps=1, enable_checkpointing=True)
    fit.fit(net(), loader())
    assert float(keep.best_model_score) == 0.25
    assert keep.best_model_path.endswith("step=9.ckpt")


def test_early_stopping_sees_the_density():
    stop = EarlyStopping("density", stopping_threshold=0.2501, mode="min", check_on_train_epoch_end=True, patience=99)
    callbacks = [MaskUpdater(GMP(every=3, stop=15), DENSITY), DensityLogger(), stop]
    fit = trainer(callbacks, max_epochs=9, log_every_n_steps=1)
    fit.fit(net(), loader())
    assert fit.current_epoch == 2  # the end of the ramp, step 15, is in the second epoch


def test_its_own_interval_holds_for_every_number(tmp_path):
    found = rows(tmp_path, watch=DensityLogger(every=4), log_every_n_steps=100)
    assert {step for step, row in found.items() if row.keys() >= LAYERS} == {0, 3, 7, 11}
    assert {step for step, row in found.items() if "density" in row} == {0, 3, 7, 11}


def test_per_layer_numbers_can_be_left_out(tmp_path):
    found = rows(tmp_path, watch=DensityLogger(per_layer=False))
    assert not any(LAYERS & row.keys() for row in found.values())
    assert all(row.keys() >= HEALTH for row in found.values())


def test_an_accumulated_window_is_one_entry(tmp_path):
    found = rows(tmp_path, accumulate_grad_batches=2)
    assert [step for step, row in found.items() if "masks/changed" in row] == list(range(6))
    assert found[5]["masks/training_flops_share"] > SHARE


def test_the_order_of_the_callbacks_does_not_matter(tmp_path):
    assert rows(tmp_path / "a") == rows(tmp_path / "b", flip=True)


def test_logging_changes_nothing_in_the_training():
    runs = []
    for extra in ([], [DensityLogger(images=True)]):
        updater, model = MaskUpdater(RIGL, DENSITY), net("adamw", 0.25)
        trainer([updater, *extra], max_epochs=1, log_every_n_steps=1).fit(model, loader(shuffle=True))
        runs.append((updater.masks, weights(model)))
    assert all(same(left, right) for left, right in zip(*runs, strict=True))


def test_tables_are_printed_at_the_start_and_at_the_end(caplog):
    with caplog.at_level("INFO"):
        trainer([MaskUpdater(RIGL, DENSITY), DensityLogger()], max_epochs=1).fit(net(), loader())
    start, end = (record.message for record in caplog.records if "net.4.weight" in record.message)
    for table in (start, end):
        assert all(f"{k:,}" in table for k in (*LIVE.values(), *SIZES.values(), 532, 2128))
    assert f"{SHARE:.1%} of dense" in start
    assert "explored" in end


def test_without_a_mask_updater_it_is_refused():
    with pytest.raises(MisconfigurationException, match="found no MaskUpdater; add one"):
        trainer([DensityLogger()], max_epochs=1).fit(net(), loader())


def test_an_interval_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="every must be a positive number of optimizer steps, got 0"):
        DensityLogger(every=0)


def test_it_works_without_a_logger_and_in_a_bare_trainer():
    callbacks = [MaskUpdater(RIGL, DENSITY), DensityLogger(images=True, histograms=True, layout=True)]
    fit = trainer(callbacks, max_epochs=1, log_every_n_steps=1)
    fit.fit(net(), loader())
    assert float(fit.callback_metrics["density"]) == 0.25
    callbacks = [MaskUpdater(RIGL, DENSITY), DensityLogger()]
    Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=callbacks).fit(net(), loader())
    assert callbacks[1].watch.health()["masks/training_flops_share"] > SHARE


def test_its_numbers_go_on_after_a_resume(tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=4.ckpt", 5)):
        watch = DensityLogger()
        callbacks = [MaskUpdater(RIGL, DENSITY), watch, saver(tmp_path, 4)]
        fit = trainer(callbacks, max_epochs=1, log_every_n_steps=1, enable_checkpointing=True)
        fit.fit(net(seed=seed), stateful(), ckpt_path=start)
        ends.append((watch.watch.health(), watch.watch.densities))
    assert ends[0] == ends[1]
    assert ends[0][0]["masks/explored"] > 0.25


def test_a_pickled_logger_takes_no_model_along():
    watch = DensityLogger()
    trainer([MaskUpdater(RIGL, DENSITY), watch], max_epochs=1).fit(net(), loader())
    assert b"helpers" not in pickle.dumps(watch)
    assert pickle.loads(pickle.dumps(watch)).watch.health() == watch.watch.health()


def test_another_model_has_another_history():
    both, fresh = DensityLogger(), DensityLogger()
    updaters = [MaskUpdater(RIGL, DENSITY, seed=seed) for seed in (1, 2)]
    trainer([updaters[0], both], max_epochs=1, log_every_n_steps=1).fit(net(seed=1), loader())
    trainer([updaters[1], both], max_epochs=1, log_every_n_steps=1).fit(net(seed=2), loader())
    alone = MaskUpdater(RIGL, DENSITY, seed=2)
    trainer([alone, fresh], max_epochs=1, log_every_n_steps=1).fit(net(seed=2), loader())
    assert both.watch.health() == fresh.watch.health()


def test_a_model_that_starts_dense_is_not_said_to_be_sparse(caplog):
    with caplog.at_level("INFO"):
        callbacks = [MaskUpdater(GMP(every=3, stop=9), DENSITY), DensityLogger()]
        trainer(callbacks, max_epochs=1).fit(net(), loader())
    text = "\n".join(record.message for record in caplog.records)
    assert "2,128 of 2,128 weights live (100.00%, 532 in the end)" in text
    assert "planned for the end; now 2,128 weights live" in text


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("every", [1, 4])
def test_a_resumed_run_logs_what_the_uninterrupted_one_does(every, flip, tmp_path):
    found = []
    for start in (None, tmp_path / "kept" / "step=6.ckpt"):
        entries = Entries()
        callbacks = [MaskUpdater(RIGL, DENSITY), DensityLogger(every, images=True)]
        callbacks = [*(callbacks[::-1] if flip else callbacks), saver(tmp_path / "kept", 6)]
        fit = trainer(callbacks, max_epochs=2, logger=entries, enable_checkpointing=True)
        fit.fit(net(seed=1 if start is None else 5), stateful(), ckpt_path=start)
        found.append(entries)
    whole, rest = found
    assert [step for step, _ in whole.rows] == [0, *range(0 if every == 1 else 3, 24, every)]
    assert rest.rows == [row for row in whole.rows if row[0] >= 6]
    assert len({step for step, *_ in whole.pictures}) == 8  # at the start, after 3, 6 ... 21 steps
    assert rest.pictures == [row for row in whole.pictures if row[0] >= 6]
