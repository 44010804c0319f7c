"""What cannot become an ONNX file is refused with the reason, before or instead of writing one."""

import importlib

import pytest
import torch
from exported import known, noise
from torch import nn

from lightning_sparse.export import agreement, calibrate, convert, extras, session, to_executorch, to_onnx


def model():
    return nn.Sequential(nn.Linear(6, 4))


@pytest.fixture
def without(monkeypatch):
    """Makes packages missing."""

    def missing(*names):
        real = importlib.import_module

        def load(name, package=None):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, package)

        monkeypatch.setattr(extras, "import_module", load)

    return missing


@pytest.mark.parametrize(
    ("missing", "how", "words"),
    [
        (("onnx", "onnxscript"), {}, r"onnx, onnxscript.* are not installed: pip install \"lightning-sparse\[onnx\]\""),
        (("onnxruntime",), {}, r"onnxruntime is not installed: pip install \"lightning-sparse\[onnx\]\""),
        (("openvino",), {"check": ["openvino"]}, r"openvino is not .*pip install \"lightning-sparse\[openvino\]\""),
    ],
)
def test_a_missing_extra_is_named_and_nothing_is_written(missing, how, words, without, tmp_path):
    if "onnx" not in missing:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    without(*missing)
    with pytest.raises(ImportError, match=words):
        to_onnx(model(), tmp_path / "net.onnx", noise(5, 6), "float", **how)
    assert not list(tmp_path.iterdir())


def test_a_missing_executorch_is_named(without, tmp_path):
    without("executorch")
    with pytest.raises(ImportError, match=r"not installed: pip install \"lightning-sparse\[executorch\]\""):
        to_executorch(model(), tmp_path / "net.pte", noise(5, 6))


def test_a_package_that_is_there_and_lacks_another_says_so_itself(monkeypatch):
    def load(name, package=None):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(extras, "import_module", load)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        session("net.onnx")


def test_all_wrong_arguments_are_told_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)3 problems.*folder .*nowhere does not exist.*'fast'.*'tensorrt'"):
        to_onnx(model(), tmp_path / "nowhere" / "net.onnx", noise(5, 6), "fast", check=["tensorrt"])


@pytest.mark.parametrize(
    ("path", "how", "words"),
    [
        ("", {}, "is a folder; give a file's name"),
        ("net.onnx", {"check": "onnxruntime"}, "check takes a list of onnxruntime, openvino, got 'onnxruntime'"),
        ("net.onnx", {"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
    ],
)
def test_wrong_arguments_are_refused(path, how, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        to_onnx(model(), tmp_path / path, noise(5, 6), "float", **how)


def test_another_runtime_is_refused():
    with pytest.raises(ValueError, match="runtime must be one of onnxruntime, openvino, got 'tensorrt'"):
        session("net.onnx", "tensorrt")


def test_what_pytorch_cannot_export_is_refused_with_its_reason(tmp_path):
    pytest.importorskip("onnxscript")

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x):
            return self.layer(x) if float(x.sum()) > 0 else x

    with pytest.raises(ValueError, match=r"PyTorch cannot export this module: .*(?i:data-dependent|symbol|guard)"):
        to_onnx(Branching(), tmp_path / "net.onnx", noise(5, 6).abs(), known(Branching(), noise(5, 6).abs()))
    assert not list(tmp_path.iterdir())


def test_a_module_that_was_not_quantized_is_told_both_ways_out(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"was not quantized.*calibrate"):
        to_onnx(model(), tmp_path / "net.onnx", noise(5, 6))


def test_inputs_that_the_file_does_not_take_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    to_onnx(model(), tmp_path / "net.onnx", noise(5, 6), "float")
    with pytest.raises(ValueError, match=r"the file takes \['input'\], the inputs have 2 tensors"):
        agreement(nn.Identity(), tmp_path / "net.onnx", (torch.ones(1), torch.ones(1)))


def test_quantizing_and_converting_need_no_extra(without):
    without("onnx", "onnxscript", "onnxruntime", "openvino", "executorch")
    net = model()
    calibrate(net, [noise(5, 6)])
    assert convert(net, noise(5, 6))(noise(5, 6)).shape == (5, 4)
