"""What is taken out of an ONNX graph changes no value."""

import numpy as np
import pytest
import torch

from lightning_sparse.export.graph import tidy

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
X = np.linspace(-3, 9, 25, dtype=np.float32)


def graph(*nodes, grid=(0.05, 0, "uint8"), other=(0.1, 0, "uint8"), low=0.0, high=6.0, outputs=("y",)):
    """A graph from x to y, of (operation, input, output); grids are constants s0, z0, s1, z1, bounds low, high."""
    made = []
    for op, source, target in nodes:
        kind, _, which = op.partition("/")
        more = {"Q": [f"s{which}", f"z{which}"], "D": [f"s{which}", f"z{which}"], "Clip": ["low", "high"]}.get(kind, [])
        name = {"Q": "QuantizeLinear", "D": "DequantizeLinear"}.get(kind, kind)
        made.append(onnx.helper.make_node(name, [*source.split(), *more], [target], doc_string="written at /home"))
    constants = {"low": np.float32(low), "high": np.float32(high), "c": np.float32(1.0)}
    for i, (scale, zero, kind) in enumerate((grid, other)):
        constants |= {f"s{i}": np.float32(scale), f"z{i}": np.array(zero, dtype=kind)}
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        made, "g", [value("x", 1, [25])], [value(name, 1, [25]) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def answers(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return run.run(None, {"x": X})


def after(model):
    """The operations that are left; values are those from before."""
    before = answers(model)
    tidy(model)
    onnx.checker.check_model(model, full_check=True)
    for a, b in zip(before, answers(model), strict=True):
        np.testing.assert_array_equal(a, b)
    return " ".join(node.op_type.replace("Linear", "") for node in model.graph.node)


ON_GRID = [("Q/0", "x", "q"), ("D/0", "q", "d")]


def test_a_relu_after_a_grid_without_negatives_goes():
    assert after(graph(*ON_GRID, ("Relu", "d", "r"), ("Add", "r c", "y"))) == "Quantize Dequantize Add"


def test_a_relu_after_a_grid_with_negatives_stays():
    ops = after(graph(*ON_GRID, ("Relu", "d", "r"), ("Add", "r c", "y"), grid=(0.05, 20, "uint8")))
    assert ops == "Quantize Dequantize Relu Add"


@pytest.mark.parametrize(("scale", "left"), [(6 / 255, ""), (6.1 / 255, " Clip")])
def test_a_clip_goes_where_the_grid_ends_within_it(scale, left):
    ops = after(graph(*ON_GRID, ("Clip", "d", "r"), ("Add", "r c", "y"), grid=(scale, 0, "uint8")))
    assert ops == f"Quantize Dequantize{left} Add"


def test_signed_grids_are_read_rightly():
    nodes = [*ON_GRID, ("Relu", "d", "r"), ("Add", "r c", "y")]
    assert after(graph(*nodes, grid=(0.05, -128, "int8"))) == "Quantize Dequantize Add"
    assert after(graph(*nodes, grid=(0.05, -127, "int8"))) == "Quantize Dequantize Relu Add"


def test_a_relu_before_rounding_that_cuts_negatives_off_goes():
    nodes = [("Add", "x c", "a"), ("Relu", "a", "r"), ("Q/0", "r", "q"), ("D/0", "q", "y")]
    assert after(graph(*nodes)) == "Add Quantize Dequantize"
    assert after(graph(*nodes, grid=(0.05, 1, "uint8"))) == "Add Relu Quantize Dequantize"


def test_a_relu_that_somebody_else_reads_stays():
    nodes = [("Add", "x c", "a"), ("Relu", "a", "r"), ("Q/0", "r", "q"), ("D/0", "q", "d"), ("Add", "r d", "y")]
    assert after(graph(*nodes)) == "Add Relu Quantize Dequantize Add"


def test_a_relu_that_is_an_output_stays():
    nodes = [("Relu", "x", "r"), ("Q/0", "r", "q"), ("D/0", "q", "y")]
    assert after(graph(*nodes, outputs=("y", "r"))) == "Relu Quantize Dequantize"
    assert after(graph(*ON_GRID, ("Relu", "d", "y"))) == "Quantize Dequantize Relu"


def test_rounding_to_the_grid_that_values_are_on_goes():
    nodes = [*ON_GRID, ("Q/1", "d", "q2"), ("D/1", "q2", "e"), ("Add", "e c", "y")]
    assert after(graph(*nodes, other=(0.05, 0, "uint8"))) == "Quantize Dequantize Add"
    assert after(graph(*nodes)) == "Quantize Dequantize Quantize Dequantize Add"


def test_constants_that_nothing_uses_and_notes_go():
    model = graph(*ON_GRID, ("Relu", "d", "r"), ("Add", "r c", "y"))
    after(model)
    assert {value.name for value in model.graph.initializer} == {"s0", "z0", "c"}
    assert not any(node.doc_string for node in model.graph.node)


def test_weights_do_not_share_zero_points():
    model = graph(("Add", "x c", "y"))
    codes = onnx.numpy_helper.from_array(np.arange(25, dtype=np.uint8), "codes")
    twin = onnx.numpy_helper.from_array(np.arange(25, dtype=np.uint8)[::-1].copy(), "codes2")
    model.graph.initializer.extend([codes, twin])
    make = onnx.helper.make_node
    del model.graph.node[:]
    model.graph.node.extend(
        [make("DequantizeLinear", [name, "s0", "z0"], [f"{name}_d"]) for name in ("codes", "codes2")]
        + [make("Add", ["codes_d", "codes2_d"], ["sum"]), make("Add", ["sum", "x"], ["y"])]
    )
    after(model)
    zeros = [node.input[2] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(set(zeros)) == 2


def test_torch_rounds_as_the_graph_does():
    from lightning_sparse.export.layers import ToGrid
    from lightning_sparse.quant.quantization import Range

    [expected] = answers(graph(("Q/0", "x", "q"), ("D/0", "q", "y"), grid=(0.25, 3, "uint8")))
    np.testing.assert_array_equal(ToGrid(Range(0.25, 3))(torch.from_numpy(X)).numpy(), expected)
