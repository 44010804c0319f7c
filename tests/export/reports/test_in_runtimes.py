"""Latencies in other runtimes: real ones where they are installed, made-up ones for what can go wrong."""

from importlib.util import find_spec

import pytest
import torch
from reported import QUICK, by_hand
from torch import nn

from lightning_sparse import export
from lightning_sparse.export.reports import runners
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(5))


def small():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def known(net):
    """Of seven bits: of eight, some processors cut off sums, and their answers are refused."""
    quantizer = Quantizer(net, find(net, lambda: net(X), {"0": 7, "3": 7}))
    quantizer.calibrate([lambda: net(X)])
    found = quantizer.quantization
    quantizer.detach()
    return found


def test_floats_and_integers_are_measured_from_files_of_their_own(monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    names = ["onnxruntime"] + (["openvino"] if find_spec("openvino") else [])
    net, kinds = small(), []

    def watched(path, runtime, threads):
        kinds.append({node.op_type for node in onnx.load(path).graph.node})
        return export.session(path, runtime, threads=threads)

    monkeypatch.setattr(runners, "session", watched)
    options = {**QUICK, "runtimes": names, "batch_sizes": [1, 3]}
    found = export.report({"a": net}, X, quantizations={"a": known(net)}, **options)
    assert [row.name for row in found.rows] == ["a", "a + int7"]
    assert ["QuantizeLinear" in each for each in kinds] == [False] * len(names) + [True] * len(names)
    for row in found.rows:
        assert [one.batch for one in row.latencies if one.wall and one.cpu] == [1, 3] * len(names)
    assert set(found.machine.versions) == {"torch", *names}
    assert "Times faster than a in ONNX Runtime" in str(found)


@pytest.fixture
def made_up(monkeypatch):
    """A runtime without files: what it answers to inputs, by the number of samples its file is for."""

    def use(answer):
        written = {}

        def to_onnx(module, path, inputs, quantization, check, dynamic_batch):
            assert (quantization, check) == ("float", ())
            path.touch()
            written[path] = None if dynamic_batch else len(inputs)

        monkeypatch.setattr(runners, "to_onnx", to_onnx)
        monkeypatch.setattr(
            runners, "session", lambda path, runtime, threads: lambda inputs: answer(written[path], inputs)
        )
        monkeypatch.setattr("lightning_sparse.export.reports.build.missing", lambda runtime: "")
        return written

    return use


def measured(batch_sizes=(2, 3)):
    """Of a model whose answer is three times the sum of its four inputs, plus three, twice."""
    options = {**QUICK, "runtimes": ["onnxruntime"], "batch_sizes": batch_sizes}
    return export.report({"a": by_hand()}, torch.rand(4, 4) + 1, **options)


def right(samples, x):
    return [(3 * x.sum(1, keepdim=True) + 3).expand(-1, 2)]


def test_one_file_serves_all_batch_sizes(made_up):
    written = made_up(right)
    assert [one.why for one in measured().rows[0].latencies] == ["", ""]
    assert list(written.values()) == [None]


def test_a_model_that_fixes_its_batch_size_has_a_file_for_each(made_up):
    def only(samples, x):
        if samples != len(x):
            raise RuntimeError("wrong shape")
        return right(samples, x)

    written = made_up(only)
    assert [one.why for one in measured().rows[0].latencies] == ["", ""]
    assert list(written.values()) == [None, 2, 3]


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (lambda samples, x: [-y for y in right(samples, x)], "onnxruntime and PyTorch disagree"),
        (lambda samples, x: [y + torch.rand(1) for y in right(samples, x)], "gives two answers to one question"),
        (lambda samples, x: [], "onnxruntime answers with outputs of the shapes"),
    ],
)
def test_a_runtime_that_computes_something_else_is_not_timed(made_up, answer, note):
    made_up(answer)
    found = measured()
    assert [(one.wall, one.why) for one in found.rows[0].latencies] == [(None, "failed: ValueError")] * 2
    assert any(note in each for each in found.notes)
    assert "faster" not in str(found)


def test_a_model_is_compiled_before_its_calls_are_timed(monkeypatch):
    calls = []

    def compiled(module, dynamic):
        assert dynamic is False
        return lambda x: calls.append(len(x)) or module(x)

    monkeypatch.setattr(torch, "compile", compiled)
    found = export.report(
        {"a": by_hand()}, torch.rand(4, 4), **{**QUICK, "runtimes": ["compile"], "batch_sizes": [2, 3]}
    )
    assert calls[:2] == [2, 3]
    assert [one.why for one in found.rows[0].latencies] == ["", ""]


def test_a_compiler_that_is_missing_is_a_cell(monkeypatch):
    def broken(module, dynamic):
        raise RuntimeError("BackendCompilerFailed") from FileNotFoundError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    found = export.report({"a": by_hand()}, torch.rand(4, 4), **{**QUICK, "runtimes": ["eager", "compile"]})
    assert [one.why for one in found.rows[0].latencies] == ["", "failed: FileNotFoundError"]
    assert "a in torch.compile: FileNotFoundError: no C++ compiler" in found.notes
