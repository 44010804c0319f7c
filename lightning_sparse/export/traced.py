"""PyTorch's ONNX exporter, quietly, with what it says when it fails."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sparse.channels.quiet import plain_paths
from lightning_sparse.core.flops import batch_size
from lightning_sparse.core.probe import untouched_randomness
from lightning_sparse.export.extras import hushed, need
from lightning_sparse.export.graph import tidy


def exported(small: nn.Module, inputs: Any, dynamic_batch: bool, opset: int | None) -> Any:
    """A checked ``onnx.ModelProto``."""
    [onnx] = need("onnx", "onnx")
    rows = batch_size(inputs) or 1
    if dynamic_batch and rows == 1:  # PyTorch takes a 1 for a constant
        inputs = longer(inputs, 1)
    args, kwargs = arguments(inputs)
    shapes = _shapes(args, kwargs, batch_size(inputs)) if dynamic_batch else None
    with hushed("torch.onnx"), untouched_randomness(), plain_paths(), torch.no_grad():
        try:
            program = torch.onnx.export(
                small, args, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False
            )
        except Exception as error:
            hint = "; if the model fixes its batch size, pass dynamic_batch=False" if dynamic_batch else ""
            raise ValueError(f"to_onnx: PyTorch cannot export this module: {reason(error)}{hint}") from error
    assert program is not None
    model = program.model_proto
    sizes = [size for value in model.graph.input for size in value.type.tensor_type.shape.dim]
    if dynamic_batch and sizes and not any(size.dim_param for size in sizes):
        raise ValueError("to_onnx: this module takes batches of one size only; pass dynamic_batch=False")
    tidy(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments.

    Example:
        >>> arguments(1), arguments([1, 2]), arguments({"x": 1})
        (((1,), {}), ((1, 2), {}), ((), {'x': 1}))
    """
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def longer(inputs: Any, rows: int) -> Any:
    """The inputs with one sample more: the first once again."""

    def one_more(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows
        return torch.cat([leaf, leaf[:1]]) if batched else leaf

    return tree_map(one_more, inputs)


def _shapes(args: Any, kwargs: Any, rows: int | None) -> Any:
    """What PyTorch is told of dimensions: a free one named batch, by the names of arguments."""
    batch = torch.export.Dim("batch")

    def free(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows
        return {0: batch} if batched else None

    shapes = tree_map(free, args)
    return {**tree_map(free, kwargs)} if kwargs else shapes


def reason(error: BaseException) -> str:
    """The first line of what went wrong in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
