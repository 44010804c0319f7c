"""A model of a report: what it is called, and the copy that is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sparse.core.flops import batch_size
from lightning_sparse.export.conversion import convert
from lightning_sparse.export.copies import float_inputs, plain_copy
from lightning_sparse.export.reports.notes import Notes
from lightning_sparse.quant.quantization import Quantization


@dataclass
class Subject:
    """One row to be.

    Attributes:
        name: of the row.
        weights: a copy of the model with float weights, on the CPU, in evaluation mode.
        quantization: of the row; None for the float model.
        module: what is run: ``weights``, or that converted to integers; None where it cannot be.
        error: why not.
    """

    name: str
    weights: nn.Module
    quantization: Quantization | None = None
    module: nn.Module | None = None
    error: Exception | None = None


def subjects(
    variants: Mapping[str, nn.Module], inputs: Any, quantizations: Mapping[str, Quantization], notes: Notes
) -> list[Subject]:
    """A row for each variant, and one more for each that is quantized."""
    found = []
    for name, module in variants.items():
        twin = plain_copy(module, "report")
        found.append(Subject(name, twin, None, twin))
        if name in quantizations:
            found.append(_quantized(name, twin, inputs, quantizations[name], notes))
    return found


def quantized_name(name: str, known: Quantization) -> str:
    """What the quantized model is called.

    Example:
        >>> from lightning_sparse.quant.quantization import Layer
        >>> quantized_name("sparse", Quantization({"a": Layer("a", 8)}))
        'sparse + int8'
        >>> quantized_name("sparse", Quantization({"a": Layer("a", 8), "b": Layer("b", 3)}))
        'sparse + int3 to int8'
    """
    bits = sorted({layer.bits for layer in known.layers.values()})
    return f"{name} + {' to '.join(f'int{each}' for each in dict.fromkeys((bits[0], bits[-1])))}"


def _quantized(name: str, twin: nn.Module, inputs: Any, known: Quantization, notes: Notes) -> Subject:
    subject = Subject(quantized_name(name, known), twin, known)
    try:
        subject.module = convert(twin, inputs, known)
    except Exception as error:
        subject.error = error
        notes.failed(f"{subject.name}, converted", error)
    return subject


def batched(inputs: Any, samples: int) -> Any:
    """Inputs of so many samples: the given ones again and again.

    Example:
        >>> batched((torch.tensor([[1.0], [2.0]]), 7), 3)
        (tensor([[1.],
                [2.],
                [1.]]), 7)
    """
    size = batch_size(inputs) or 1
    index = torch.arange(samples) % size

    def taken(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return leaf[index] if fits else leaf

    return tree_map(taken, float_inputs(inputs))
