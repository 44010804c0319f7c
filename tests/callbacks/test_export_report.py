"""A report at the end of a fit tells what was trained, and the run does not notice."""

import copy
import pickle
from pathlib import Path

import pruned
import pytest
import torch
from helpers import Net, loader, same, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.compile import from_compiled
from reported import QUICK, Data, Mute, Tiny, accuracy, loss

from lightning_sparse import ExportReport, MaskUpdater, QuantizeSparse, export

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def fitted(report, *others, model=None, folder=None, **settings):
    """The report of a fit of 8 steps."""
    torch.manual_seed(1)
    model = Tiny() if model is None else model
    own = trainer([*others, report], max_epochs=2, default_root_dir=folder or Path.cwd(), **settings)
    own.fit(model, datamodule=Data())
    return model, own


def quick(*arguments, **given):
    return ExportReport(*arguments, **{**QUICK, **given})


def test_it_is_written_below_the_root_of_the_run(tmp_path):
    report = quick()
    fitted(report, folder=tmp_path)
    assert export.Report.from_json((tmp_path / "report" / "report.json").read_text()) == report.report


def test_it_is_written_in_the_loggers_folder(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    fitted(quick(), folder=tmp_path, logger=CSVLogger(tmp_path, name="run", version="v1"))
    assert (tmp_path / "run" / "v1" / "report" / "report.md").exists()


def test_it_is_written_where_it_is_told_to(tmp_path):
    fitted(quick(str(tmp_path / "here")))
    assert (tmp_path / "here" / "report.html").exists()


def test_a_sparse_model_is_told_of_with_the_accuracy_of_the_last_validation():
    report = quick()
    model, _ = fitted(report, MaskUpdater("static", density={"net.0": 0.25, "net.2": 1.0}))
    [row] = report.report.rows
    assert (row.name, row.parameters, row.flops, row.live_flops) == ("sparse", 21, 36.0, 18.0)
    assert report.report.metric == "val_acc"
    assert row.metric == pytest.approx(accuracy(model))


def test_the_metric_is_what_is_asked_for_else_what_is_monitored(tmp_path):
    asked, monitored = quick(metric="val_loss"), quick()
    _, own = fitted(asked)
    fitted(monitored, ModelCheckpoint(tmp_path, monitor="val_loss"), enable_checkpointing=True)
    assert asked.report.metric == monitored.report.metric == "val_loss"
    assert asked.report.rows[0].metric == float(own.callback_metrics["val_loss"])


def test_a_metric_that_was_not_logged_is_a_note():
    report = quick(metric="f1")
    fitted(report)
    assert report.report.rows[0].metric is None
    assert any("metric='f1' was not logged" in note for note in report.report.notes)


def test_a_validation_before_the_last_step_is_not_of_the_final_weights():
    report = quick()
    fitted(report, check_val_every_n_epoch=1, limit_train_batches=3, val_check_interval=2)
    assert report.report.rows[0].metric is None
    assert any("the last validation was not of the final weights" in note for note in report.report.notes)


def test_integers_have_a_row_and_the_metric_stands_where_it_was_measured():
    late, trained = quick(), quick()
    fitted(late, QuantizeSparse())
    fitted(trained, QuantizeSparse(bits=4, at=1))
    assert [row.name for row in late.report.rows] == ["trained", "trained + int8"]
    assert [row.metric is None for row in late.report.rows] == [False, True]
    assert [row.name for row in trained.report.rows] == ["trained", "trained + int4"]
    assert [row.metric is None for row in trained.report.rows] == [True, False]


def test_validate_measures_every_row():
    report, quantize = quick(validate=True), QuantizeSparse()
    model, own = fitted(report, quantize)
    small = export.convert(model, torch.zeros(1, 4), quantize.quantization)
    assert [row.metric for row in report.report.rows] == [pytest.approx(accuracy(net)) for net in (model, small)]
    assert own.state.fn == "fit"
    assert model.trainer is own


def test_validate_says_what_failed_and_the_rest_is_there():
    class Broken(Tiny):
        def validation_step(self, batch, batch_idx):
            if not self.trainer.state.fn == "fit":
                raise KeyError("nothing here")

    report = quick(validate=True)
    fitted(report, model=Broken())
    assert report.report.rows[0].why == {"metric": "failed: KeyError"}
    assert report.report.rows[0].latency("eager", 1).wall > 0


def test_a_model_that_lost_channels_stands_beside_the_dense_one(tmp_path):
    first = trainer(max_steps=1)
    first.fit(pruned.net(), loader())
    first.save_checkpoint(tmp_path / "dense.ckpt")
    report, model = quick(baseline=str(tmp_path / "dense.ckpt")), pruned.net()
    trainer([pruned.pruner(0.5), report], max_epochs=2).fit(model, loader(), loader())
    dense, slim = report.report.rows
    assert (dense.name, slim.name) == ("dense", "slim")
    assert dense.parameters == sum(weight.numel() for weight in pruned.net().parameters())
    assert slim.parameters == sum(weight.numel() for weight in model.parameters()) < dense.parameters
    assert slim.flops < dense.flops
    assert dense.why == slim.why == {}


def test_a_dense_model_is_the_first_row(tmp_path):
    torch.manual_seed(7)
    dense = Tiny()
    first = trainer(max_epochs=1, enable_checkpointing=False)
    first.fit(dense, datamodule=Data())
    first.save_checkpoint(tmp_path / "dense.ckpt")
    report = quick(baseline=str(tmp_path / "dense.ckpt"), validate=True)
    model, _ = fitted(report, MaskUpdater("static", density={"net.0": 0.25, "net.2": 1.0}))
    assert [(row.name, row.nonzeros) for row in report.report.rows] == [("dense", 21), ("sparse", 12)]
    assert [row.metric for row in report.report.rows] == [pytest.approx(accuracy(net)) for net in (dense, model)]


def test_a_dense_model_of_another_kind_is_a_note(tmp_path):
    torch.save({"state_dict": {"other.weight": torch.ones(3)}}, tmp_path / "dense.ckpt")
    report = quick(baseline=str(tmp_path / "dense.ckpt"))
    fitted(report)
    assert [row.name for row in report.report.rows] == ["trained"]
    assert any(note.startswith("dense: the checkpoint cannot be loaded: RuntimeError") for note in report.report.notes)


def test_a_dense_model_that_is_missing_stops_the_run_before_it_starts():
    with pytest.raises(MisconfigurationException, match=r"baseline='no\.ckpt' is no file"):
        fitted(quick(baseline="no.ckpt"))


def test_without_a_forward_the_only_part_is_exported_and_validated_in_its_place():
    report = quick(validate=True, metric="val_loss")
    model, _ = fitted(report, QuantizeSparse(bits=2, act_bits=4), model=Mute())
    assert [(row.name, row.parameters) for row in report.report.rows] == [("trained", 21), ("trained + int2", 21)]
    coarse = export.convert(model.net, torch.zeros(1, 4))
    assert [row.metric for row in report.report.rows] == [pytest.approx(loss(net)) for net in (model.net, coarse)]
    assert loss(coarse) != pytest.approx(loss(model.net))


def test_with_several_parts_the_user_must_say_which():
    class Two(Mute):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

    with pytest.warns(UserWarning, match="Two has no forward, so part= must name what is exported; .*: net, head"):
        fitted(quick(), model=Two())
    report = quick(part="net")
    fitted(report, model=Two())
    assert report.report.rows[0].parameters == 21


def test_what_goes_wrong_becomes_one_warning_and_the_run_is_whole(monkeypatch):
    def breaks(*arguments, **others):
        raise RuntimeError("no room\nleft")

    monkeypatch.setattr("lightning_sparse.callbacks.export_report.made_report", breaks)
    report = quick()
    with pytest.warns(UserWarning, match="ExportReport: the report could not be made: RuntimeError: no room$"):
        _, own = fitted(report)
    assert own.state.finished
    assert report.report is None


def test_the_run_does_not_notice():
    runs = []
    for callbacks in ([], [quick(validate=True)]):
        torch.manual_seed(1)
        model = Net("adam", dropout=0.2)
        own = trainer([*callbacks, MaskUpdater("rigl", density=0.5), QuantizeSparse(bits=4, at=1)], max_epochs=2)
        own.fit(model, loader(), loader())
        runs.append((weights(model), torch.rand(1), [module.training for module in model.modules()]))
    assert same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]


def test_what_is_measured_of_a_compiled_model_is_a_copy_and_not_its_original():
    model = from_compiled(torch.compile(Tiny(), backend="eager"))  # as Trainer.fit takes it; its steps are its own
    seen = []

    def emptied(twin):
        with torch.no_grad():
            for weight in twin.parameters():
                weight.zero_()
        seen.append(twin(torch.ones(1, 4)).tolist())
        return 0

    export.report({"a": model}, torch.ones(1, 4), evaluate=emptied, **QUICK)
    assert seen == [[[0.0, 0.0]]]


def test_other_ranks_make_none(monkeypatch):
    report = quick()
    model, own = fitted(report)
    report.report = None
    monkeypatch.setattr(type(own), "is_global_zero", property(lambda self: False))
    report.on_fit_end(own, model)
    assert report.report is None


def test_a_second_fit_makes_another():
    report = quick()
    model, own = fitted(report)
    first = report.report
    own.fit_loop.max_epochs = 4
    own.fit(model, datamodule=Data())
    assert report.report is not first
    assert report.report.rows[0].metric == pytest.approx(accuracy(model))


def test_copies_and_pickles_keep_what_it_was_told():
    report = quick("here", metric="val_loss")
    fitted(report, model=Tiny())
    for twin in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert (twin.dirpath, twin.metric, twin.report) == ("here", "val_loss", report.report)


def test_all_wrong_arguments_are_said_at_once():
    with pytest.raises(ValueError) as raised:
        ExportReport(3, batch_sizes=[], runtimes=["x"], metric=1, validate="yes", baseline=2, part=3, rounds=0, name=0)
    text = str(raised.value)
    for name in ("dirpath", "batch_sizes", "runtimes", "metric", "validate", "baseline", "part", "rounds", "name"):
        assert f"- {name} must be" in text, name
