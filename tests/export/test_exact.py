"""What is loaded is bit for bit what was saved: any type, any bits, any zeros; and other readers read the same."""

import safetensors
import safetensors.torch
import torch
from export.drawn import DTYPES, Holder, bits, coded, same_bits, tensor_of, tensors
from export.plain import read
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.quant.grid import quantize


def check(tmp_path_factory, module, codes=None, expected=None):
    """Save, load, and read with a reader of its own; each must find what was saved."""
    file = tmp_path_factory.mktemp("packed") / "net.safetensors"
    report = save_packed(module, file, codes)
    expected = module.state_dict() if expected is None else expected
    found, plain = load_packed(file), read(file.read_bytes())
    assert list(found) == list(plain) == list(expected)
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name
        assert plain[name][1:] == (tuple(tensor.shape), bits(tensor)), name
    with safetensors.safe_open(file, "pt") as library:  # it checks the header by its own rules
        assert sum(library.get_tensor(key).nbytes for key in library.keys()) == sum(row.bytes for row in report.tensors)  # noqa: SIM118
    return report


@settings(deadline=None, max_examples=60)
@given(st.lists(tensors(), max_size=3))
def test_any_tensors_come_back_bit_for_bit(tmp_path_factory, drawn):
    check(tmp_path_factory, Holder({f"t{i}": tensor for i, tensor in enumerate(drawn)}))


@settings(deadline=None, max_examples=60)
@given(coded())
def test_codes_come_back_as_code_times_scale(tmp_path_factory, drawn):
    weight, codes = drawn
    expected = {"w": (codes.codes * codes.scale.view([-1 if d == codes.axis else 1 for d in range(weight.ndim)]))}
    check(tmp_path_factory, Holder({"w": weight}), {"w": codes}, {"w": expected["w"].to(weight.dtype)})


def test_every_type_comes_back_in_every_way(tmp_path_factory):
    kinds = set()
    for dtype in DTYPES:
        for density, shape in ((1.0, (3,)), (0.02, (40, 100)), (1.0, (40, 100))):
            tensor = tensor_of(dtype, shape, density, 1, wild=density < 1)
            report = check(tmp_path_factory, Holder({"w": tensor}))
            kinds.add((report.tensors[0].kind, dtype.itemsize))
    assert kinds >= {(kind, size) for kind in ("plain", "gaps") for size in (1, 2, 4, 8)}
    assert ("values", 4) in kinds


def test_special_floats_keep_their_bits(tmp_path_factory):
    odd = [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x007FFFFF]
    weight = torch.zeros(1000)
    signed = [one - 2**32 * (one >> 31) for one in odd]
    weight[:999:111] = torch.tensor(signed, dtype=torch.int32).view(torch.float32)
    report = check(tmp_path_factory, Holder({"w": weight}))
    assert report.tensors[0].kind == "gaps"
    assert report.tensors[0].live == 9  # minus zero is a value


def test_blocks_and_pieces_of_large_tensors_fit_together(tmp_path_factory):
    """More than a piece of weights (2**20), of gaps (2**18) and of values (2**16)."""
    file = tmp_path_factory.mktemp("packed") / "net.safetensors"
    weight = tensor_of(torch.float32, (1_500_000,), 0.3, 2)
    weight[700_000:1_200_000] = 0.0  # a gap over the end of a piece
    save_packed(Holder({"w": weight, "d": torch.randn(300_000)}), file)
    assert same_bits(load_packed(file)["w"], weight)


def test_tensors_that_do_not_lie_in_one_piece_are_saved_as_they_look(tmp_path_factory):
    image = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    check(tmp_path_factory, Holder({"t": torch.randn(50, 60).t(), "s": torch.randn(100)[::3], "image": image}))


def test_other_views_of_the_same_memory_are_tensors_of_their_own(tmp_path_factory):
    square = torch.arange(10_000.0).view(100, 100)
    views = {"t": square.t(), "flat": square.view(-1), "top": square[:50], "raw": square.view(torch.int32)}
    report = check(tmp_path_factory, Holder({"square": square, **views}))
    assert len(report.tensors) == 5


def test_names_are_only_names(tmp_path):
    module, odd = nn.Module(), ["../../evil", "/etc/passwd", "über", 'a"b\\c', "a b=c", "format", "tensor:x", "\n", ""]
    state = {name: torch.full((300,), float(i)) * (torch.arange(300) > 297) for i, name in enumerate(odd)}
    module.state_dict = lambda: state
    save_packed(module, tmp_path / "net")
    found = load_packed(tmp_path / "net")
    assert list(found) == odd
    assert all(same_bits(found[name], state[name]) for name in odd)
    assert [file.name for file in tmp_path.iterdir()] == ["net"]


def test_the_smallest_way_is_taken_and_is_near_the_entropy(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(1000, 1000)
    weight *= weight.abs() > weight.abs().flatten().kthvalue(950_000).values
    weight.add_(0.0)  # no minus zeros
    report = save_packed(Holder({"w": weight}), tmp_path / "net", {"w": quantize(weight, 8)})
    assert report.bytes <= report.dense_bytes / 48
    live, size = 50_000, 1_000_000
    share = torch.tensor([live / size, 1 - live / size], dtype=torch.float64)
    positions = float(-(share * share.log2()).sum()) * size / 8
    assert positions + live * 6 / 8 < report.bound_bytes < positions + live * 7 / 8 + 4000  # 254 codes, and scales
    assert report.bound_bytes < report.bytes < 1.02 * report.bound_bytes


def test_patterns_beat_the_entropy_of_chance(tmp_path):
    rows = torch.rand(1024, 1) < 0.3
    weight = torch.ones(1024, 1024) * rows
    report = save_packed(Holder({"w": weight}), tmp_path / "net")
    assert report.bytes < 0.05 * report.bound_bytes
