"""ONNX files: integers inside, the mask's zeros, and the answers of ONNX Runtime and OpenVINO."""

import subprocess
import sys

import pytest
import torch
from exported import Residual, Twice, encoder, image, known, lively, noise
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse.export import agreement, convert, onnx_file, session, to_onnx
from lightning_sparse.quant.quantization import Layer, Quantization, Range

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
X = image()


class Residual48(LightningModule):
    """A LightningModule of 48 channels, a third of its weights alive."""

    def __init__(self):
        super().__init__()
        self.net = Residual(48)

    def forward(self, x):
        return self.net(x)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model, its quantization, its converted copy, its file and what was reported; made once."""
    torch.manual_seed(0)
    model = lively(Residual48()).train()
    with torch.no_grad():
        for weight in [p for p in model.parameters() if p.ndim > 1]:
            weight.mul_(torch.rand_like(weight) < 0.33)
    x = image(8)
    quantization = known(model, x)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    report = to_onnx(model, path, x, quantization)
    return model, quantization, convert(model, x, quantization), path, report


def integers(path):
    """Names and values of all int8 matrices and kernels of a file."""
    tensors = onnx.load(path).graph.initializer
    found = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in tensors if t.data_type == 3}
    return {name: codes for name, codes in found.items() if codes.ndim > 1}


def test_onnx_runtime_answers_as_pytorch_does(file):
    *_, report = file
    assert set(report.agreement) == {"onnxruntime"}
    assert report.agreement["onnxruntime"].error < 0.03
    assert report.agreement["onnxruntime"].same == 1.0


def test_the_integers_of_the_file_are_the_codes_and_their_zeros_the_mask(file):
    model, quantization, small, path, _ = file
    found = integers(path)
    assert len(found) == len(quantization.layers) == 4
    for name in quantization.layers:
        codes = found[f"{name}.codes"]
        assert torch.equal(codes, small.get_submodule(name).codes)
        assert torch.equal(codes != 0, model.get_submodule(name).weight != 0), name
        assert torch.equal(codes.abs(), quantization.codes(model)[f"{name}.weight"].codes.abs())


def test_no_weight_is_a_float_in_the_file(file):
    model, _, _, path, report = file
    floats = [t for t in onnx.load(path).graph.initializer if t.data_type == 1]
    assert max(torch.Size(t.dims).numel() for t in floats) <= 48  # scales, one for each channel
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert weights < report.size == path.stat().st_size < 1.5 * weights


def test_any_batch_size_runs(file):
    _, _, small, path, _ = file
    run = session(path, threads=1)
    for rows in (1, 3, 17):
        [answer] = run(image(rows))
        assert answer.shape == (rows, 3)
        assert agreement(small, path, image(rows)).error < 0.03


def test_the_file_says_nothing_of_the_machine_it_was_made_on(file):
    content = file[3].read_bytes()
    assert b"/" + b"site-packages" not in content
    assert b"exported.py" not in content


def test_it_runs_in_a_process_that_has_no_pytorch(file):
    code = (
        "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]);"
        "x = {s.get_inputs()[0].name: numpy.ones((2, 2, 6, 6), 'float32')};"
        "print(s.run(None, x)[0].shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file[3])], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(2, 3) False"


def test_between_convolutions_there_are_integers_only(file):
    ops = [node.op_type for node in onnx.load(file[3]).graph.node]
    assert ops.count("Conv") == 3
    assert ops.count("Relu") == 1  # after the sum; those after convolutions are in the grids
    assert "BatchNormalization" not in ops


def test_openvino_reads_the_same_file_and_answers_alike(file):
    pytest.importorskip("openvino")
    _, _, small, path, _ = file
    found = agreement(small, path, image(5), "openvino")
    assert (found.runtime, found.same) == ("openvino", 1.0)
    assert found.error < 0.03


def test_a_file_that_answers_otherwise_is_an_error_and_nothing_is_left(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(6, 4))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the old one")
    real = session

    def broken(path, runtime, **how):
        run = real(path, runtime, **how)
        return lambda inputs: [t + 0.2 * t.std() for t in run(inputs)]

    monkeypatch.setattr(onnx_file, "session", broken)
    with pytest.raises(ValueError, match=r"onnxruntime and PyTorch disagree: error 0\.2.*of the output's spread"):
        to_onnx(model, path, noise(5, 6), known(model, noise(5, 6)))
    assert path.read_bytes() == b"the old one"
    assert [found.name for found in tmp_path.iterdir()] == ["net.onnx"]


def test_a_runtime_that_answers_otherwise_the_second_time_is_an_error(tmp_path, monkeypatch):
    model, real = nn.Sequential(nn.Linear(6, 4)), session

    def drifting(path, runtime, **how):
        run, calls = real(path, runtime, **how), []
        return lambda inputs: [t + 1e-6 * len(calls) for t in run(inputs) if calls.append(1) is None]

    monkeypatch.setattr(onnx_file, "session", drifting)
    with pytest.raises(ValueError, match="onnxruntime gives two answers to one question"):
        to_onnx(model, tmp_path / "net.onnx", noise(5, 6), known(model, noise(5, 6)))
    assert not list(tmp_path.iterdir())


def test_where_onnx_runtime_cuts_off_sums_there_is_a_warning(tmp_path, monkeypatch):
    model, real = nn.Sequential(nn.Linear(6, 4)), session

    def cutting(path, runtime, exact=True):  # as a processor without VNNI does with eight bits
        run = real(path, runtime)
        return run if exact else lambda inputs: [t.clamp(max=0.99 * t.max()) for t in run(inputs)]

    monkeypatch.setattr(onnx_file, "session", cutting)
    with pytest.warns(UserWarning, match=r"cuts off large sums.*bits=7.*x64quantprecision"):
        to_onnx(model, tmp_path / "net.onnx", noise(5, 6), known(model, noise(5, 6)))


@pytest.mark.filterwarnings("ignore:on this processor:UserWarning")
def test_a_session_does_not_cut_off_sums_of_eight_bits(tmp_path):
    model, x = nn.Sequential(nn.Linear(64, 4)), torch.full((5, 64), 2.55)
    with torch.no_grad():
        model[0].weight.fill_(127 / 128)  # 255 * 127 twice is 64770, and int16 ends at 32767
        model[0].weight[1:, ::2] *= -0.5
    known_ = Quantization({"0": Layer("0", 8, input="0:in")}, {"0:in": Range(0.01, 0)})
    report = to_onnx(model, tmp_path / "net.onnx", x, known_)
    assert report.agreement["onnxruntime"].error < 1e-3
    torch.testing.assert_close(session(tmp_path / "net.onnx")(x)[0], model(x).detach(), rtol=1e-2, atol=1e-2)


def test_seven_bits_are_exact_on_every_processor(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.full((5, 6), 2.55)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    known_ = Quantization({"0": Layer("0", 7, input="0:in")}, {"0:in": Range(0.01, 0)})
    to_onnx(model, tmp_path / "net.onnx", x, known_)  # 255 * 64 twice is 32640, and int16 ends at 32767
    fast, exact = (session(tmp_path / "net.onnx", exact=exact)(x)[0] for exact in (False, True))
    assert torch.equal(fast, exact)
    torch.testing.assert_close(fast, model(x).detach(), rtol=1e-4, atol=1e-4)


class Several(nn.Module):
    """Two inputs, one of them optional and one with integers; several outputs."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(7, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        hidden = self.table(ids) + shift
        return {"scores": self.layer(hidden), "hidden": (hidden, F.relu(hidden))}


def test_dicts_of_inputs_and_several_outputs(tmp_path):
    model, inputs = Several(), {"shift": noise(4, 6), "ids": torch.tensor([0, 3, 6, 1])}
    to_onnx(model, tmp_path / "net.onnx", inputs, known(model, inputs))
    answers = session(tmp_path / "net.onnx")({"ids": torch.tensor([3]), "shift": torch.zeros(1, 6)})
    assert [tuple(t.shape) for t in answers] == [(1, 3), (1, 6), (1, 6)]
    torch.testing.assert_close(answers[1], model.table.weight[3:4].detach())


def test_the_batch_may_be_fixed(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x):
            return self.layer(x.reshape(5, 6))

    model, x = Fixed(), noise(5, 6)
    with pytest.raises(ValueError, match="takes batches of one size only; pass dynamic_batch=False"):
        to_onnx(model, tmp_path / "net.onnx", x, known(model, x))
    to_onnx(model, tmp_path / "net.onnx", x, known(model, x), dynamic_batch=False)
    assert [d.dim_value for d in onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim] == [5, 6]


@pytest.mark.parametrize(
    ("make", "x", "how"),
    [
        (encoder, noise(3, 5, 8), {}),
        (Twice, noise(1, 6), {}),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.ReLU6(), nn.Conv2d(4, 3, 1)), X, {}),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, groups=4)), X, {}),
        (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), noise(5, 6), {"act_bits": None}),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), X, {"bits": 3, "act_bits": 4}),
    ],
    ids=["encoder", "shared", "transposed", "grouped", "weights only", "few bits"],
)
def test_other_models(make, x, how, tmp_path):
    torch.manual_seed(1)
    model = make().eval()
    quantization = known(model, x, **how)
    report = to_onnx(model, tmp_path / "net.onnx", x, quantization)
    assert report.agreement["onnxruntime"].error < 0.03
    assert len(integers(tmp_path / "net.onnx")) == len(quantization.layers)


def test_activations_of_four_bits_take_sixteen_values(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    model[0].weight.data.fill_(1.27)
    layer = Layer("0", 8, input="0:in", output="0:out")
    ranges = {"0:in": Range(0.1, 8, 4), "0:out": Range(0.127, 8, 4)}
    to_onnx(model, tmp_path / "net.onnx", noise(1, 1, 4, 4), Quantization({"0": layer}, ranges))
    run = session(tmp_path / "net.onnx")
    found = torch.cat([run(part.view(1, 1, 4, 4))[0].flatten() for part in torch.linspace(-3, 3, 320).split(16)])
    # Inputs end at -0.8 and 0.7; times 1.27 is a step of the output's grid for each of the input's.
    assert found.unique().tolist() == pytest.approx([0.127 * code for code in range(-8, 8)], abs=1e-6)


def test_the_float_module_is_written_when_asked_for(tmp_path):
    model = lively(Residual())
    report = to_onnx(model, tmp_path / "net.onnx", image(), "float", opset=18)
    assert report.opset == 18
    assert report.agreement["onnxruntime"].error < 1e-5
    assert not integers(tmp_path / "net.onnx")
