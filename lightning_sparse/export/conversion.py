"""From a trained module to one of integers: what every runtime is fed with."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lightning_sparse.channels.quiet import plain_paths
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import call
from lightning_sparse.core.probe import untouched_randomness
from lightning_sparse.core.select import modules_of
from lightning_sparse.export.copies import float_inputs, plain_copy, replaced, unwrapped
from lightning_sparse.export.extras import wrong_arguments
from lightning_sparse.export.folding import can_fold, fit_bias, fold, is_linear_in_weight
from lightning_sparse.export.layers import QuantizedLayer, ToGrid
from lightning_sparse.quant.grid import Codes
from lightning_sparse.quant.quantization import Layer, Quantization, Range, remembered

Target = Literal["onnx", "executorch"]


def convert(
    module: nn.Module, example_inputs: Any, quantization: Quantization | None = None, *, target: Target = "onnx"
) -> nn.Module:
    """A copy of the module that computes what its quantization says, with int8 weights; the module stays as it is.

    Weights are int8 buffers, BatchNorms are folded into them, activations pass through 8-bit grids. It runs in plain
    PyTorch and gives what training with :class:`~lightning_sparse.QuantizeSparse` simulated, up to the rounding of
    floats and of biases. It is not faster there: it is what exporters read. The zeros of its integers are the mask's.

    Args:
        module: any module, also compiled, wrapped in DDP, or a LightningModule with a ``forward``. The copy is in
            evaluation mode, in float32 on the CPU.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keyword arguments.
        quantization: bits and ranges; None takes what ``QuantizeSparse`` or ``calibrate`` left with the module.
        target: "onnx": uint8 activations and int32 biases; "executorch": int8 activations, float biases, and what comes
            out of Linear layers on grids too, half as wide again as their values on the example inputs need.

    Raises:
        ValueError: if nothing is known of a quantization, it belongs to another model, weights have NaN, or the example
            inputs do not fit.

    Example:
        >>> from lightning_sparse.quant.quantization import Layer, Range
        >>> net = nn.Sequential(nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[127 / 64, 0.0]])), net[0].bias.fill_(0.5)
        >>> known = Quantization({"0": Layer("0", 8, input="0:in")}, {"0:in": Range(0.1, 0)})
        >>> small = convert(net, torch.ones(1, 2), known)
        >>> small[0].codes, small[0].bias_codes
        (tensor([[127,   0]], dtype=torch.int8), tensor([320], dtype=torch.int32))
        >>> small(torch.tensor([[0.52, 9.0]]))
        tensor([[1.4922]])
    """
    wrong_arguments("convert", module, example_inputs)
    if target not in ("onnx", "executorch"):
        raise ValueError(f"convert: target must be 'onnx' or 'executorch', got {target!r}")
    known = quantization if quantization is not None else found(module)
    twin = plain_copy(module, "convert")
    small = _converted(twin, known, target)
    if target == "executorch":
        _close(small, example_inputs)
    first, second = (outputs(small, example_inputs, "convert") for _ in range(2))
    if not all(torch.equal(a, b) or _equal_nan(a, b) for a, b in zip(first, second, strict=True)):
        raise ValueError("convert: the converted module gives two answers to one question; its forward has a state")
    return small


def found(module: nn.Module) -> Quantization:
    """What the module, or the one inside its wrappers, was quantized with.

    Raises:
        ValueError: if nothing is known.
    """
    known = remembered(module) or remembered(unwrapped(module))
    if known is None:
        raise ValueError(
            f"this {type(module).__name__} was not quantized: train it with the callback QuantizeSparse, or call "
            "export.calibrate(module, batches), which also returns what quantization= takes"
        )
    return known


def outputs(module: nn.Module, inputs: Any, where: str) -> list[Tensor]:
    """Tensors of one run in evaluation mode, in order.

    Raises:
        ValueError: if the module cannot be called with these.
    """
    with untouched_randomness(), plain_paths(), torch.no_grad():
        try:
            answer = call(module, float_inputs(inputs))
        except NotImplementedError as error:
            if "forward" not in str(error):
                raise
            raise ValueError(f"{where}: {type(module).__name__} has no forward; give the part that has one") from error
        except Exception as error:
            raise ValueError(f"{where}: the module cannot be called with example_inputs: {error}") from error
    return [leaf.detach().clone() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]


def _converted(twin: nn.Module, known: Quantization, target: Target) -> nn.Module:
    parts = modules_of(twin)
    codes = known.codes(twin)
    _refuse(parts, known)
    new: dict[int, nn.Module] = {}
    for name, layer in known.layers.items():
        norm = None if layer.norm is None else parts[layer.norm]
        try:
            small, rest = _layer(parts[name], norm, codes[layer.weight], _grids(layer, known, target))
        except ValueError as error:
            raise ValueError(f"convert: {name}: {error}") from error
        new[id(parts[name])] = small
        if norm is not None and rest is not None:
            new[id(norm)] = rest
    return replaced(twin, new)


class _Grids(NamedTuple):
    """The grids around one layer, and the scale of its input where its bias is to be quantized."""

    entry: ToGrid | None
    leave: ToGrid | None
    step: float | None


def _grids(layer: Layer, known: Quantization, target: Target) -> _Grids:
    signed = target == "executorch"
    entry, leave = known.ranges.get(layer.input or ""), known.ranges.get(layer.output or "")
    return _Grids(
        None if entry is None else ToGrid(entry, signed=signed),
        None if leave is None else ToGrid(leave, layer.clip, signed),
        None if entry is None or signed else entry.scale,
    )


def _layer(
    layer: nn.Module, norm: nn.Module | None, codes: Codes, grids: _Grids
) -> tuple[QuantizedLayer, nn.Module | None]:
    """The converted layer, and what stands in the place of its norm."""
    if not is_linear_in_weight(layer):  # its own bias, and its norm, stay what they are
        small = QuantizedLayer(layer, codes, entry=grids.entry, leave=None if norm else grids.leave)
        return small, None if norm is None else _behind(norm, grids)
    bias: Tensor | None = layer._parameters.get("bias")
    rest: nn.Module | None = None
    leave = grids.leave
    if isinstance(norm, _BatchNorm) and can_fold(layer, norm):
        codes, bias = fold(codes, bias, norm)
        rest = nn.Identity()
    elif norm is not None:
        rest, leave = _behind(norm, grids), None
    bias = None if bias is None else bias.detach().float()
    if bias is not None and not bias.isfinite().all():
        raise ValueError("its bias has NaN or infinity")
    if bias is not None and grids.step is not None:
        codes = fit_bias(codes, bias, grids.step)
    return QuantizedLayer(layer, codes, bias, grids.step, grids.entry, leave), rest


def _behind(norm: nn.Module, grids: _Grids) -> nn.Module | None:
    return None if grids.leave is None else nn.Sequential(norm, grids.leave)


def _close(small: nn.Module, inputs: Any) -> None:
    """Grids for the outputs that have none: XNNPACK computes with integers only what comes out as integers."""
    open_ends = [part for part in small.modules() if isinstance(part, QuantizedLayer) and part.entry and not part.leave]
    seen: dict[nn.Module, list[Tensor]] = {part: [torch.zeros(1)] for part in open_ends}

    def look(part: nn.Module, args: Any, output: Tensor) -> None:
        seen[part] += [output.min().view(1), output.max().view(1)]

    handles = [part.register_forward_hook(look) for part in open_ends]
    outputs(small, inputs, "convert")
    for handle in handles:
        handle.remove()
    for part in open_ends:
        low, high = (1.5 * float(end) for end in torch.cat(seen[part]).aminmax())
        scale = max((high - low) / 255, 1e-6)
        part.leave = ToGrid(Range(scale, min(round(-low / scale), 255)), signed=True)


def _refuse(parts: dict[str, nn.Module], known: Quantization) -> None:
    problems = [
        f"the model has no {layer.norm}, which was folded into {name}"
        for name, layer in known.layers.items()
        if layer.norm is not None and layer.norm not in parts
    ]
    places = {place for layer in known.layers.values() for place in (layer.input, layer.output) if place}
    if known.ranges and (lost := sorted(places - set(known.ranges))):
        problems.append(f"no range is known of {', '.join(lost)}; calibrate with data that reaches them")
    raise_problems(problems, "convert")


def _equal_nan(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
