"""The console script, and YAML in anybody's LightningCLI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_sparse import cli

pytest.importorskip("jsonargparse")
MODEL = "lightning.pytorch.demos.boring_classes.BoringModel"  # one layer of 64 weights
QUIET = [
    "--seed_everything=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=8",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]
YAML = """
seed_everything: 1
model:
  class_path: lightning.pytorch.demos.boring_classes.BoringModel
trainer:
  accelerator: cpu
  max_steps: 8
  limit_val_batches: 0
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_sparse.MaskUpdater
      init_args:
        algorithm:
          class_path: lightning_sparse.RigL
          init_args:
            every: 2
            stop: 7
            fraction:
              class_path: lightning_sparse.ConstantSchedule
              init_args:
                value: 0.5
        density: 0.2
        include: ["lay*"]
    - class_path: lightning_sparse.DensityLogger
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The console script, as a shell would call it; what it trained is in the last checkpoint."""

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the script sets it; this takes it back
        monkeypatch.setattr(sys, "argv", ["lightning-sparse", *arguments])
        cli.main()
        return checkpoint(tmp_path)

    return run


def checkpoint(folder: Path) -> dict:
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(newest, weights_only=True)


def trained(stored: dict) -> tuple[str, int, int]:
    """The algorithm, the live weights and the updates that a checkpoint tells of."""
    state = stored["callbacks"]["lightning_sparse.MaskUpdater"]
    live = state["params"]["layer.weight"]["live"]
    assert int(stored["state_dict"]["layer.weight"].count_nonzero()) <= live
    return state["algorithm"], live, state["updates"]


def test_a_callback_is_known_by_its_short_name(script):
    stored = script(
        "fit", f"--model={MODEL}", *QUIET, "--trainer.callbacks+=MaskUpdater", "--trainer.callbacks.density=0.2"
    )
    assert trained(stored)[:2] == ("RigL", 13)  # 0.2 * 64 = 12.8


def test_layers_compute_live_weights_only_where_the_command_line_says_so(script):
    more = ["--trainer.callbacks.density=0.2", "--trainer.callbacks.compute=sparse"]
    stored = script("fit", f"--model={MODEL}", *QUIET, "--trainer.callbacks+=MaskUpdater", *more)
    assert trained(stored)[:2] == ("RigL", 13)
    assert stored["state_dict"]["layer.weight"].shape == (2, 32)


def test_an_algorithm_is_known_by_its_short_name(script):
    more = ["--trainer.callbacks.algorithm=SET", "--trainer.callbacks.algorithm.every=2"]
    stored = script("fit", f"--model={MODEL}", *QUIET, "--trainer.callbacks+=MaskUpdater", *more)
    assert trained(stored) == ("SET", 6, 3)  # of 8 steps, 75 % are 6


def test_a_yaml_gives_algorithm_and_schedule_by_class_path(script, tmp_path):
    (tmp_path / "config.yaml").write_text(YAML)
    assert trained(script("fit", "--config=config.yaml")) == ("RigL", 13, 3)


def test_steps_that_arrive_as_a_float_are_steps(script, tmp_path):
    """In a process that has seen Union[float, int] first, the parser reads 7 as 7.0."""
    (tmp_path / "config.yaml").write_text(YAML.replace("stop: 7", "stop: 7.0"))
    assert trained(script("fit", "--config=config.yaml")) == ("RigL", 13, 3)


def printed(script, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        script(*arguments, "--print_config")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_a_printed_config_trains_the_same_and_prints_the_same(script, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text(YAML)
    first = printed(script, capsys, "fit", "--config=config.yaml")
    (tmp_path / "printed.yaml").write_text(first)
    assert "class_path: lightning_sparse.RigL" in first
    assert printed(script, capsys, "fit", "--config=printed.yaml") == first
    assert trained(script("fit", "--config=printed.yaml")) == ("RigL", 13, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.callbacks.density=3.0"], ["density must be in (0, 1], got 3.0"]),
        (["--trainer.callbacks.algorithm=rigel"], ["rigel", "sparse_momentum"]),
        (["--trainer.callbacks.allocation=erkk"], ["erkk", "uniform"]),
        (["--trainer.callbacks.densty=0.1"], ["densty"]),
        (["--trainer.callbacks.algorithm=RigL", "--trainer.callbacks.algorithm.every=0"], ["every must be", "got 0"]),
    ],
    ids=lambda value: value[-1] if value[0].startswith("--") else "",
)
def test_a_bad_value_is_named(script, capsys, arguments, words):
    with pytest.raises((SystemExit, ValueError)) as caught:
        script("fit", f"--model={MODEL}", *QUIET, "--trainer.callbacks+=MaskUpdater", *arguments)
    text = capsys.readouterr().err + str(caught.value)
    assert all(word in text for word in words), text


def test_the_help_explains_every_argument(script, capsys):
    with pytest.raises(SystemExit):
        script("fit", "--trainer.callbacks.help=MaskUpdater")
    text = capsys.readouterr().out
    for name in ("algorithm", "density", "allocation", "include", "exclude", "seed", "restore_rng", "init"):
        assert f"--trainer.callbacks.{name}" in text
    assert "live share of all chosen weights" in text


OWN = """
from lightning.pytorch.cli import LightningCLI
LightningCLI(save_config_callback=None)
"""


def test_another_cli_takes_the_class_path_without_an_import(tmp_path):
    (tmp_path / "config.yaml").write_text(YAML)
    command = [sys.executable, "-W", "ignore", "-c", OWN, "fit", "--config=config.yaml"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert trained(checkpoint(tmp_path)) == ("RigL", 13, 3)
