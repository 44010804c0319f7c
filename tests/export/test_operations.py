"""Should PyTorch's own operations be gone, ours do the same."""

import sys

import torch

from lightning_sparse.export import operations


def test_our_operations_do_what_pytorchs_do(monkeypatch):
    monkeypatch.setattr(operations, "_own", [])
    operations.define("lightning_sparse_test")
    ours, theirs = torch.ops.lightning_sparse_test, operations.operations()
    x = torch.linspace(-3, 9, 101)
    where = (0.05, 3, 0, 255, torch.uint8)
    codes = theirs.quantize_per_tensor(x, *where)
    assert torch.equal(ours.quantize_per_tensor(x, *where), codes)
    assert torch.equal(ours.dequantize_per_tensor(codes, *where), theirs.dequantize_per_tensor(codes, *where))
    weight = torch.randint(-127, 128, (2, 3, 2)).to(torch.int8)
    for axis in (0, 1):
        scale, zero = torch.rand(weight.shape[axis]), torch.zeros(weight.shape[axis], dtype=torch.int8)
        given = (weight, scale, zero, axis, -127, 127, torch.int8)
        assert torch.equal(ours.dequantize_per_channel(*given), theirs.dequantize_per_channel(*given))


def test_where_pytorch_has_none_ours_take_the_name(monkeypatch):
    named = []
    operations.operations()  # PyTorch's own are imported by now
    monkeypatch.delattr("torch.ao.quantization.fx._decomposed")
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.fx._decomposed", None)
    monkeypatch.setattr(operations, "define", lambda: named.append(operations.NAMESPACE))
    operations.operations()
    assert named == ["quantized_decomposed"]


def test_they_are_defined_once(monkeypatch):
    monkeypatch.setattr(operations, "_own", [])
    operations.define("lightning_sparse_once")
    operations.define("lightning_sparse_once")
    assert len(operations._own) == 1
