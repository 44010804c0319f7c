"""BNChannelPruner from YAML, as LightningCLI reads it."""

import sys

import pytest
import torch

from lightning_sparse import cli

pytest.importorskip("jsonargparse")
YAML = """
model:
  class_path: pruned.Net
  init_args:
    width: 8
data:
  class_path: pruned.Data
trainer:
  accelerator: cpu
  max_epochs: 3
  limit_val_batches: 0
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: BNChannelPruner
      init_args:
        keep: 0.5
        criterion:
          class_path: lightning_sparse.channels.Gamma
          init_args:
            combine: mean
        at: [1, 0.5]
        l1:
          class_path: lightning_sparse.LinearSchedule
          init_args:
            start: 0.01
        penalty: proximal
        round_to: 1
        exclude: ["hidden"]
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the script sets it; this takes it back
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning-sparse", *arguments])
        cli.main()

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_it_works_from_yaml_and_goes_on_from_its_checkpoint(script, tmp_path):
    (tmp_path / "config.yaml").write_text(YAML)
    script("fit", "--config=config.yaml")
    (path,) = tmp_path.rglob("*.ckpt")
    stored = torch.load(path, weights_only=True)
    state = stored["callbacks"]["lightning_sparse.BNChannelPruner"]
    assert state["done"] == 2
    assert sum(state["counts"].values()) == 8  # of 8 and 8 that may go; 12 are excluded
    assert stored["state_dict"]["hidden.weight"].shape[0] == 12
    script("test", "--config=config.yaml", f"--ckpt_path={path}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bad_value_is_named(script, tmp_path):
    (tmp_path / "config.yaml").write_text(YAML.replace("keep: 0.5", "keep: 5.0"))
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 5.0"):
        script("fit", "--config=config.yaml")
