"""What a report measures, against counts by hand and files that are written beside it."""

import warnings

import pytest
import torch
from reported import QUICK, accuracy, by_hand, three_of_twelve
from torch import nn

from lightning_sparse import export
from lightning_sparse.export.reports import runners
from lightning_sparse.quant.quantization import Layer, Quantization, Range, remember

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
KNOWN = Quantization(
    {"0": Layer("0", 8, input="0:in"), "2": Layer("2", 8, input="2:in")},
    {"0:in": Range(0.02, 128), "2:in": Range(0.05, 0)},
)


def quick(variants, inputs=X, **given):
    return export.report(variants, inputs, **{**QUICK, **given})


def test_parameters_zeros_and_flops_are_those_counted_by_hand():
    dense, sparse = quick({"dense": by_hand(), "sparse": three_of_twelve()}).rows
    assert (dense.parameters, dense.nonzeros, dense.flops, dense.live_flops) == (21, 21, 36.0, 36.0)
    assert (sparse.parameters, sparse.nonzeros, sparse.flops, sparse.live_flops) == (21, 12, 36.0, 18.0)


def test_flops_of_a_convolution_are_those_counted_by_hand():
    net = nn.Conv2d(1, 2, 2)  # 8 weights at 4 places of an image of 3 x 3
    [row] = quick({"conv": net}, torch.zeros(5, 1, 3, 3)).rows
    assert (row.parameters, row.flops) == (10, 2.0 * 8 * 4)


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    [row] = quick({"tied": net}, torch.zeros(1, 3)).rows
    assert (row.parameters, row.flops) == (9, 2.0 * 9 * 2)


def test_the_entropy_is_the_one_worked_by_hand():
    net = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([1.0, 2.0]).repeat(8).view(2, 8))
    # all 16 live, so places say nothing; 1.0 is 3f800000 and 2.0 is 40000000: two bytes of one bit each, 16 times
    assert quick({"two values": net}, torch.zeros(1, 8)).rows[0].bound_bytes == 16 * 2 / 8


def test_bytes_are_those_of_the_files_that_are_written(tmp_path):
    net = three_of_twelve()
    torch.nn.init.normal_(net[2].weight)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    export.save_packed(net, tmp_path / "float")
    export.save_packed(net, tmp_path / "int8", KNOWN.codes(net))
    row, small = quick({"sparse": net}, quantizations={"sparse": KNOWN}).rows
    assert row.plain_bytes == small.plain_bytes == (tmp_path / "model.pt").stat().st_size
    assert row.bytes == (tmp_path / "float").stat().st_size
    assert small.bytes == (tmp_path / "int8").stat().st_size
    assert small.bound_bytes < row.bound_bytes


def test_a_quantized_variant_has_a_second_row_of_its_integers():
    net = three_of_twelve()
    found = quick({"sparse": net, "other": by_hand()}, quantizations={"sparse": KNOWN})
    assert [(row.name, row.quantized) for row in found.rows] == [
        ("sparse", False), ("sparse + int8", True), ("other", False),
    ]  # fmt: skip
    assert found.rows[1].nonzeros == 12
    assert found.rows[1].live_flops == 18.0
    assert found.rows[1].latency("eager", 1).why == "float only"


def test_what_a_module_is_remembered_by_is_found_unless_others_are_given():
    net = three_of_twelve()
    remember(net, KNOWN)
    assert [row.name for row in quick({"a": net}).rows] == ["a", "a + int8"]
    assert [row.name for row in quick({"a": net}, quantizations={}).rows] == ["a"]


def test_bits_are_in_the_name():
    layers = {"0": Layer("0", 4), "2": Layer("2", 2)}
    rows = quick({"a": by_hand()}, quantizations={"a": Quantization(layers)}).rows
    assert rows[1].name == "a + int2 to int4"


def test_evaluate_sees_each_model_in_evaluation_mode_and_the_integers_too():
    net, seen = three_of_twelve().train(), []

    def evaluate(model):
        seen.append((model.training, model is net, type(model[0]).__name__))
        model.train()
        return torch.tensor(len(seen))

    found = quick({"a": net}, evaluate=evaluate, metric="order", quantizations={"a": KNOWN})
    assert [row.metric for row in found.rows] == [1.0, 2.0]
    assert seen == [(False, False, "Linear"), (False, False, "QuantizedLayer")]
    assert found.metric == "order"


def test_the_metric_is_the_users_own_number():
    net = by_hand()
    with torch.no_grad():
        net[2].weight[0] = -1.0
    [row] = quick({"a": net}, evaluate=accuracy).rows
    assert row.metric == accuracy(net)


@pytest.mark.parametrize(
    ("evaluate", "why", "note"),
    [
        (lambda model: 1 / 0, "failed: ZeroDivisionError", "a, evaluated: ZeroDivisionError: division by zero"),
        (lambda model: "g", "failed: TypeError", "a, evaluated: TypeError: evaluate must return a number, got 'g'"),
        (lambda model: float("nan"), "nan", "a: evaluate returned nan"),
        (lambda model: None, "failed: TypeError", "a, evaluated: TypeError: evaluate must return a number, got None"),
    ],
)
def test_a_metric_that_cannot_be_had_says_why_and_the_rest_is_there(evaluate, why, note):
    found = quick({"a": by_hand()}, evaluate=evaluate)
    [row] = found.rows
    assert row.metric is None
    assert row.why == {"metric": why}
    assert note in found.notes
    assert row.latency("eager", 1).wall > 0
    assert why in [cell.strip() for cell in str(found).splitlines()[2].split("|")]


def test_a_variant_that_takes_other_inputs_says_so_and_the_others_are_measured():
    found = quick({"a": by_hand(), "b": nn.Linear(7, 2)}, batch_sizes=[1, 2], evaluate=lambda model: 1)
    good, bad = found.rows
    assert good.latency("eager", 2).wall > 0
    assert (bad.parameters, bad.flops, bad.metric) == (16, None, 1.0)
    assert bad.bytes > 0
    assert [one.why for one in bad.latencies] == ["failed: RuntimeError"] * 2
    assert bad.why == {"flops": "failed: RuntimeError", "live_flops": "failed: RuntimeError"}
    assert any(note.startswith("b in PyTorch eager @1: RuntimeError: ") for note in found.notes)


def test_a_quantization_of_another_model_leaves_a_row_that_says_so():
    found = quick({"a": nn.Linear(4, 2)}, quantizations={"a": KNOWN}, evaluate=lambda model: 1)
    row = found.rows[1]
    assert (row.name, row.parameters, row.metric, row.bytes) == ("a + int8", 10, None, None)
    assert row.why["metric"] == row.why["bytes"] == "failed: ValueError"
    assert any("the model has no weight 0.weight" in note for note in found.notes)


def test_a_runtime_that_fails_says_why_and_the_others_go_on(monkeypatch):
    def breaks(self, runtime):
        if runtime == "onnxruntime" and self.subject.name == "b":
            raise ValueError("no kernel\nof this kind") from RuntimeError("the first reason")
        return {1: lambda: None}

    monkeypatch.setattr(runners.Runners, "prepare", breaks)
    monkeypatch.setattr("lightning_sparse.export.reports.build.missing", lambda runtime: "")
    found = quick({"a": by_hand(), "b": by_hand()}, runtimes=["eager", "onnxruntime"])
    assert [[one.why for one in row.latencies] for row in found.rows] == [["", ""], ["", "failed: RuntimeError"]]
    assert "b in ONNX Runtime: RuntimeError: the first reason" in found.notes


@pytest.fixture
def bare(monkeypatch):
    """A machine on which neither runtime is installed."""

    def need(extra, *modules):
        raise ImportError(f'{modules[0]} is not installed: pip install "lightning-sparse[{extra}]"')

    monkeypatch.setattr(runners, "need", need)


@pytest.mark.usefixtures("bare")
def test_runtimes_that_are_missing_are_cells_if_asked_for_and_notes_in_any_case():
    asked = quick({"a": by_hand()}, runtimes=["eager", "openvino"])
    assert [(one.runtime, one.why) for one in asked.rows[0].latencies] == [("eager", ""), ("openvino", "not installed")]
    default = quick({"a": by_hand()}, runtimes=None)
    assert [one.runtime for one in default.rows[0].latencies] == ["eager"]
    for found in (asked, default):
        assert any(note.startswith("OpenVINO was not measured") and "pip install" in note for note in found.notes)
    assert list(default.machine.versions) == ["torch"]


def test_inputs_of_any_batch_size_are_made_of_the_given_ones():
    sizes = []

    class Watched(nn.Linear):
        def forward(self, x, mask=None, scale=1):
            sizes.append((len(x), len(mask), scale))
            return super().forward(x) * scale

    quick({"a": Watched(4, 2)}, {"x": X, "mask": X[:, 0], "scale": 3}, batch_sizes=[1, 5])
    assert set(sizes) == {(1, 1, 3), (5, 5, 3)}


def test_nothing_of_the_users_is_touched():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    net[1].eval()
    remember(net, Quantization({"0": Layer("0", 8, norm="1", input="0:in")}, {"0:in": Range(0.1, 128)}))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, threads = [module.training for module in net.modules()], torch.get_num_threads()
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    quick({"a": net}, threads=2, evaluate=lambda model: float(torch.rand(1)))
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in net.modules()] == modes
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())


def test_it_is_written_where_it_is_told_to(tmp_path):
    found = quick({"a": by_hand()}, path=tmp_path / "report")
    assert export.Report.from_json((tmp_path / "report" / "report.json").read_text()) == found


def test_a_busy_machine_is_told_of_and_a_quiet_one_is_not():
    from lightning_sparse.export.reports.notes import Notes
    from lightning_sparse.export.reports.rows import Latency

    quiet, busy = Notes(), Notes()
    quiet.busy([Latency("eager", 1, 0.010, 0.009), Latency("eager", 32), Latency("eager", 8, 5e-5, 1e-5)])
    busy.busy([Latency("eager", 1, 0.010, 0.009), Latency("eager", 32, 0.030, 0.010)])
    assert quiet.texts == []
    assert busy.texts[0].startswith("the machine was busy: calls took up to 3.0 times")


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    converted = export.convert(by_hand(), X, KNOWN)
    with pytest.raises(ValueError) as raised:
        export.report(
            {"": by_hand(), "b": "no module", "c": converted, "d": by_hand(), "d + int8": nn.ReLU()},
            {"x": 3},
            evaluate=7,
            metric="",
            quantizations={"d": KNOWN, "nobody": KNOWN, "b": 8},
            batch_sizes=[0, "1"],
            runtimes=["tensorrt"],
            rounds=0,
            threads=1.5,
            path=tmp_path / "file",
        )  # fmt: skip
    text = str(raised.value)
    for part in (
        "variants has the name ''", "variants['b'] must be a torch.nn.Module, got str", "variants['c'] was converted",
        "quantizations['nobody'] is of no variant", "quantizations['b'] must be a Quantization", "path=",
        "variants has 'd + int8'", "example_inputs has no tensor", "evaluate must be", "metric must be",
        "batch_sizes must be a list of different", "runtimes must be a list of eager, compile, onnxruntime, openvino",
        "rounds must be", "threads must be",
    ):  # fmt: skip
        assert part in text, part
    assert text.startswith("report: 14 problems")


@pytest.mark.parametrize("variants", [{}, None, [by_hand()]])
def test_there_must_be_variants(variants):
    with pytest.raises(ValueError, match="variants must be models by name, at least one"):
        export.report(variants, X)


@pytest.mark.parametrize("sizes", [[], [1, 1], "1", 1, [2**21], [True]])
def test_batch_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="batch_sizes must be a list"):
        quick({"a": by_hand()}, batch_sizes=sizes)


def test_no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick({"a": three_of_twelve()}, quantizations={"a": KNOWN})
