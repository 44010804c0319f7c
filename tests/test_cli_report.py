"""``lightning-sparse report``, as a shell would call it."""

import sys
from pathlib import Path

import pruned
import pytest
import torch
from helpers import loader, trainer
from reported import Data, Mute, Tiny, accuracy

from lightning_sparse import MaskUpdater, QuantizeSparse, cli, export

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
YAML = """
seed_everything: 1
ckpt_path: null
trainer:
  accelerator: auto
  max_epochs: 3
  callbacks:
    - class_path: lightning_sparse.MaskUpdater
      init_args:
        algorithm: rigl
        density: 0.25
model:
  class_path: reported.{model}
data:
  class_path: reported.Data
"""
QUICK = ["--runtimes", "eager", "--batch_sizes", "1", "2", "--rounds", "1"]


@pytest.fixture
def script(monkeypatch):
    """The console script; returns the report that it wrote."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the script sets it; this takes it back
        monkeypatch.setattr(sys, "argv", ["lightning-sparse", "report", *arguments])
        cli.main()
        return export.Report.from_json(Path("report/report.json").read_text())

    return run


def config(model="Tiny"):
    Path("config.yaml").write_text(YAML.format(model=model))
    return "--config=config.yaml"


def trained(path, *callbacks, model=None):
    """The model of a fit whose checkpoint is at the path."""
    torch.manual_seed(1)
    model = Tiny() if model is None else model
    own = trainer(callbacks, max_epochs=1, enable_checkpointing=False)
    own.fit(model, datamodule=Data())
    own.save_checkpoint(path)
    return model


def sparse():
    return MaskUpdater("static", density={"net.0": 0.25, "net.2": 1.0})


def test_what_was_trained_stands_behind_the_dense_model(script, capsys):
    dense, model = trained("dense.ckpt"), trained("last.ckpt", sparse(), QuantizeSparse(bits=4))
    found = script(config(), "--ckpt_path=last.ckpt", "--dense", "dense.ckpt", *QUICK)
    assert [(row.name, row.nonzeros) for row in found.rows] == [("dense", 21), ("sparse", 12), ("sparse + int4", 12)]
    assert found.metric == "val_acc"
    assert [row.metric for row in found.rows][:2] == [pytest.approx(accuracy(each)) for each in (dense, model)]
    assert found.rows[2].metric == pytest.approx(accuracy(export.convert(model, torch.zeros(1, 4))))
    assert [(one.runtime, one.batch) for one in found.rows[0].latencies] == [("eager", 1), ("eager", 2)]
    printed = capsys.readouterr().out
    assert str(found) in printed
    assert printed.rstrip().endswith("written to report")
    assert sorted(path.name for path in Path("report").iterdir()) == ["report.html", "report.json", "report.md"]


def test_the_metric_that_is_asked_for_is_shown(script):
    trained("last.ckpt")
    found = script(config(), "--ckpt_path", "last.ckpt", "--metric", "val_loss", *QUICK)
    assert found.metric == "val_loss"
    assert found.rows[0].metric > 0


def test_channels_that_were_cut_stay_cut(script):
    first = trainer([pruned.pruner(0.5)], max_epochs=2, enable_checkpointing=False)
    model = pruned.net()
    first.fit(model, loader(), loader())
    first.save_checkpoint("slim.ckpt")
    text = YAML.replace("reported.{model}", "pruned.Net").replace("reported.Data", "reported.Images")
    Path("config.yaml").write_text(text)
    [row] = script("--config=config.yaml", "--ckpt_path=slim.ckpt", *QUICK).rows
    assert row.name == "slim"
    assert row.parameters == sum(weight.numel() for weight in model.parameters())
    assert row.parameters < sum(weight.numel() for weight in pruned.net().parameters())


def test_without_data_there_must_be_an_example(script, capsys):
    trained("last.ckpt")
    Path("config.yaml").write_text(YAML.format(model="Tiny").replace("reported.Data", "pruned.Data"))
    said = refused(script, capsys, "--config=config.yaml", "--ckpt_path=last.ckpt", *QUICK)
    assert "`val_dataloader` must be implemented" in said


def test_a_model_without_a_forward_is_measured_by_its_only_part(script):
    model = trained("last.ckpt", QuantizeSparse(), model=Mute())
    found = script(config("Mute"), "--ckpt_path=last.ckpt", *QUICK)
    assert [(row.name, row.parameters) for row in found.rows] == [("trained", 21), ("trained + int8", 21)]
    assert found.rows[0].metric == pytest.approx(accuracy(model.net))


def test_options_of_fit_override_the_config(script):
    trained("last.ckpt", model=Tiny(width=5))
    found = script(config(), "--ckpt_path=last.ckpt", "--model.init_args.width=5", *QUICK)
    assert found.rows[0].parameters == 4 * 5 + 5 + 5 * 2


def test_a_config_that_fit_has_saved_is_taken(script, monkeypatch):
    config()
    monkeypatch.setattr(sys, "argv", ["lightning-sparse", "fit", "--config=config.yaml", "--trainer.max_epochs=1"])
    cli.main()
    [saved] = Path("lightning_logs").rglob("config.yaml")
    [checkpoint] = Path("lightning_logs").rglob("*.ckpt")
    before = sorted(Path("lightning_logs").rglob("*"))
    found = script(f"--config={saved}", f"--ckpt_path={checkpoint}", *QUICK)
    assert [row.name for row in found.rows] == ["sparse"]
    assert sorted(Path("lightning_logs").rglob("*")) == before


def refused(script, capsys, *arguments):
    """What the script says on its way out."""
    with pytest.raises(SystemExit) as raised:
        script(*arguments)
    assert raised.value.code == 2
    assert not Path("report/report.json").exists()
    return capsys.readouterr().err


def test_everything_that_is_wrong_is_said_at_once(script, capsys):
    Path("file").write_text("")
    said = refused(
        script, capsys, "--config=no.yaml", "--dense=no.ckpt", "--out=file", "--batch_sizes", "0",
        "--runtimes", "tensorrt", "--rounds=0", "--threads=-1",
    )  # fmt: skip
    for part in (
        "--ckpt_path is missing", "--config no.yaml is no file", "--dense no.ckpt is no file", "--out file is a file",
        "--batch_sizes must be", "--runtimes must be", "--rounds must be", "--threads must be",
    ):  # fmt: skip
        assert part in said, part


def test_a_checkpoint_of_another_model_is_refused(script, capsys):
    trained("last.ckpt")
    said = refused(script, capsys, config(), "--ckpt_path=last.ckpt", "--model=pruned.Net", *QUICK)
    assert "Missing key(s) in state_dict" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"not a checkpoint", "is no checkpoint"),
        ({"weights": torch.ones(2)}, "is no Lightning checkpoint: it holds no state_dict"),
        ({"state_dict": {}, "thing": Tiny}, "holds objects that only code can load"),
    ],
)
def test_what_is_no_checkpoint_is_refused(script, capsys, content, words):
    if isinstance(content, bytes):
        Path("last.ckpt").write_bytes(content)
    else:
        torch.save(content, "last.ckpt")
    said = refused(script, capsys, config(), "--ckpt_path=last.ckpt", *QUICK)
    assert "last.ckpt" in said
    assert words in said


def test_an_option_that_nobody_knows_is_refused(script, capsys):
    trained("last.ckpt")
    assert "--batch_size" in refused(script, capsys, config(), "--ckpt_path=last.ckpt", "--batch_size=3")


def test_help_tells_what_it_does_and_names_every_option(script, capsys):
    with pytest.raises(SystemExit) as raised:
        script("--help")
    assert raised.value.code == 0
    text = capsys.readouterr().out
    options = "config ckpt_path dense out batch_sizes runtimes metric part rounds threads"
    for option in options.split():
        assert f"--{option}" in text
    assert "lightning-sparse report --config config.yaml --ckpt_path last.ckpt --dense dense.ckpt" in text
