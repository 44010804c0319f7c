"""Failure modes 67 to 70 and 73: loggers, the two packages, command lines, runs of unknown length."""

from importlib.metadata import entry_points
from pathlib import Path

import lightning.pytorch
import lightning.pytorch.cli
import pytest
import pytorch_lightning
import pytorch_lightning.cli
import torch
from helpers import DENSITY, LIVE, QUIET, TOTAL, body, loader, net, same, trainer, weights
from lightning.pytorch.loggers.logger import Logger
from modes import mode
from runs import MOVING, run
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_sparse import GMP, DensityLogger, MaskUpdater, Regularizer, RigL

ROOT = Path(__file__).parents[2]


class Memory(Logger):
    """Remembers what was logged."""

    name, version = "memory", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs): ...


def logged(monkeypatch):
    """The rows of a run that logs every fourth step, and the names that went through `LightningModule.log`."""
    memory, names, model = Memory(), [], net()
    plain = type(model).log

    def log(self, name, *args, **kwargs):
        names.append(name)
        return plain(self, name, *args, **kwargs)

    monkeypatch.setattr(type(model), "log", log)
    callbacks = [MaskUpdater(MOVING, DENSITY), DensityLogger()]
    trainer(callbacks, max_epochs=1, logger=memory, log_every_n_steps=4).fit(model, loader())
    return [(step, row) for step, row in memory.rows if "density/net.0.weight" in row], names


@mode(67, "`log` of every layer at every step is slow", right="layers go to the loggers, on log steps only")
def test_layers_are_logged_on_log_steps_only(monkeypatch):
    rows, names = logged(monkeypatch)
    assert [step for step, _ in rows] == [0, 3, 7, 11]
    assert set(names) == {"density", "nonzero_density", "flops_share"}
    assert len(names) <= 3 * (3 + 1)  # three log steps, and the end of the epoch


@mode(68, "CSVLogger rewrites its file when a key appears late", right="the same keys from step 0 on")
def test_the_keys_are_the_same_from_the_first_step_on(monkeypatch):
    rows, _ = logged(monkeypatch)
    assert len(rows) == 4
    assert len({frozenset(row) for _, row in rows}) == 1
    assert {f"{kind}/{name}" for kind in ("density", "nonzero") for name in LIVE} <= set(rows[0][1])


class Foreign(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = body()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


@mode(69, "a Trainer or LightningCLI of `pytorch_lightning`", right="both packages take it, bare or in a list")
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "list"])
@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda p: p.__name__)
def test_the_trainers_of_both_packages_take_it(package, bare):
    updater = MaskUpdater(MOVING, DENSITY)
    model = net() if package is lightning.pytorch else Foreign()
    fit = package.Trainer(**{**QUIET, "max_epochs": 1, "callbacks": updater if bare else [updater]})
    fit.fit(model, loader())
    assert same(updater.masks, run().updater.masks)
    assert sum(int(model.state_dict()[name].count_nonzero()) for name in LIVE) <= TOTAL


@mode(69)
@pytest.mark.parametrize("kind", [MaskUpdater, DensityLogger, Regularizer])
def test_every_callback_is_at_home_in_both_packages(kind):
    assert issubclass(kind, lightning.pytorch.Callback)
    assert issubclass(kind, pytorch_lightning.Callback)


@mode(69)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LightningCLI's args parameter.*")
@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda p: p.__name__)
def test_the_command_lines_of_both_packages_take_it(package, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the CLI sets it; this takes it back
    quiet = ["logger=false", "enable_progress_bar=false", "enable_model_summary=false", "accelerator=cpu", "devices=1"]
    args = ["fit", *(f"--trainer.{setting}" for setting in (*quiet, "limit_val_batches=0", "max_steps=4"))]
    args += ["--trainer.enable_checkpointing=false", "--trainer.callbacks=lightning_sparse.MaskUpdater"]
    args += ["--trainer.callbacks.algorithm=static", "--trainer.callbacks.density=0.25"]
    model = __import__(f"{package.__name__}.demos.boring_classes", fromlist=["BoringModel"]).BoringModel
    done = package.cli.LightningCLI(model, save_config_callback=None, args=args)
    assert isinstance(done.trainer, package.Trainer)
    assert int(done.model.layer.weight.count_nonzero()) == 16  # 0.25 * 64


@mode(70, "an entry point that puts the callback into every Trainer of the machine", right="there is none")
def test_a_trainer_without_the_callback_has_none():
    groups = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
    assert [point for group in groups for point in entry_points(group=group) if "lightning_sparse" in point.value] == []
    assert "callbacks_factory" not in (ROOT / "pyproject.toml").read_text()
    assert not any(isinstance(callback, MaskUpdater) for callback in trainer().callbacks)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


@mode(
    73,
    "runs of unknown length: iterable data, `max_epochs=-1`, `max_time`; updates that wait for ever",
    right="a share of an unknown length is refused; a clock, and a long wait, are warned of",
)
@pytest.mark.parametrize(
    ("data", "settings"),
    [(lambda: DataLoader(Endless(), batch_size=4), {}), (loader, {"max_epochs": -1, "max_time": {"hours": 1}})],
    ids=["iterable", "endless"],
)
def test_a_share_of_a_run_of_unknown_length_is_refused(data, settings):
    model = net()
    before = weights(model)
    with pytest.raises(ValueError, match=r"stop=0\.75.*unknown.*steps"):
        run(RigL(every=2), model=model, data=data(), **settings)
    assert same(weights(model), before)


@mode(73)
def test_steps_work_where_the_length_is_unknown():
    fit = run(RigL(every=2, stop=12), data=DataLoader(Endless(), batch_size=4))
    assert fit.updater.sparsifier.updates == 6


@mode(73)
@pytest.mark.parametrize(
    ("algorithm", "words"),
    [(GMP(every=3, stop=9), "final density"), (MOVING, "share of the steps")],
    ids=["ramp", "share"],
)
def test_a_clock_that_may_end_the_run_early_is_warned_of(algorithm, words):
    with pytest.warns(UserWarning, match=f"max_time may end the run before .*{words}.*give stop= in steps"):
        run(algorithm, max_time={"hours": 1})


@mode(73)
@pytest.mark.filterwarnings("ignore:no gradient came for idle.weight")
def test_an_update_that_waits_for_a_gradient_for_ever_is_warned_of():
    model = net()
    model.idle = nn.Linear(10, 10)  # no batch goes through it
    with pytest.warns(UserWarning, match=r"move after step 2, and still wait at step 26: no gradient comes for idle"):
        run(RigL(every=2, stop=40), model=model, masks={"include": ["idle"]}, max_epochs=3)
