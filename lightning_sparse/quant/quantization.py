"""What is known of a quantized model: bits of its weights, ranges of its activations, what stays in float."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import clean, modules_of
from lightning_sparse.quant.grid import BITS, Codes, output_axis, quantize
from lightning_sparse.quant.layers import parameter


@dataclass(frozen=True)
class Range:
    """An affine grid of activations: ``(code - zero_point) * scale`` with unsigned codes.

    Attributes:
        scale: of a step, positive.
        zero_point: the code of 0.0.
        bits: codes lie in ``0 ... 2**bits - 1``.
    """

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is quantized, and where the activations around it are.

    Attributes:
        module: its name in the model.
        bits: of its weight.
        norm: name of the BatchNorm that nothing stands before and that is folded into it; None for none.
        clip: what lies between this layer (and its norm) and everything that uses it: (0, None) for a ReLU, (0, 6) for
            a ReLU6; None for nothing of the kind. A range that is clipped alike makes it superfluous.
        input: the place whose range what goes in has: its own, ``"<module>:in"``, or the output of another layer where
            values come from it unchanged; None: what goes in stays in float.
        output: ``"<module>:out"`` where what comes out, after the norm, is quantized too (convolutions); else None.
    """

    module: str
    bits: int
    norm: str | None = None
    clip: tuple[float, float | None] | None = None
    input: str | None = None
    output: str | None = None

    @property
    def weight(self) -> str:
        """The parameter's name."""
        return parameter(self.module)


@dataclass(frozen=True)
class Quantization:
    """All that conversion needs beside the model itself; plain data, so that a checkpoint can hold it.

    Attributes:
        layers: by the name of their module, in the model's order.
        ranges: of the places that layers name; empty without activations.
        left: weights that stay in float, with the reason.
    """

    layers: Mapping[str, Layer]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def codes(self, model: nn.Module) -> dict[str, Codes]:
        """Integers and scales of the model's weights as they are now, by parameter name.

        Raises:
            ValueError: if the model lacks a layer, or a weight has NaN or infinity; all at once.

        Example:
            >>> import torch
            >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> net[0].weight.data = torch.tensor([[1.0, -0.6]])
            >>> Quantization({"0": Layer("0", 4)}).codes(net)["0.weight"].codes
            tensor([[ 8, -5]], dtype=torch.int8)
        """
        modules = modules_of(model)
        problems, found = [], dict[str, Codes]()
        for name, layer in self.layers.items():
            weight = getattr(modules.get(name), "weight", None)
            if not isinstance(weight, Tensor):
                problems.append(f"the model has no weight {layer.weight}, which was quantized")
            elif not weight.isfinite().all():
                problems.append(f"{layer.weight} has NaN or infinity, which no integer stands for")
            else:
                found[layer.weight] = quantize(weight.detach(), layer.bits, output_axis(modules[name]))
        raise_problems(problems, "quantizing weights")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return {
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "ranges": {name: asdict(found) for name, found in self.ranges.items()},
            "left": dict(self.left),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Quantization":
        """From what :meth:`state_dict` returned.

        Raises:
            ValueError: if it is something else.
        """
        try:
            layers = {str(name): Layer(**{**row, "clip": _pair(row["clip"])}) for name, row in state["layers"].items()}
            ranges = {str(name): Range(**row) for name, row in state["ranges"].items()}
            left = {str(name): str(why) for name, why in state["left"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this is no saved quantization: {error!r}") from error
        wrong = [f"{name} has {layer.bits} bits" for name, layer in layers.items() if layer.bits not in BITS]
        wrong += [f"the range of {n} has the scale {r.scale}" for n, r in ranges.items() if not 0 < r.scale < 1e38]
        raise_problems(wrong, "reading a saved quantization")
        return cls(layers, ranges, left)


_REMEMBERED: WeakKeyDictionary[nn.Module, tuple[Quantization, str]] = WeakKeyDictionary()


def remember(module: nn.Module, quantization: Quantization) -> None:
    """Keep in mind how a module was quantized, and the modules in it, for as long as they exist; copies are others.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> remember(net, Quantization({"0": Layer("0", 4)}))
        >>> remembered(net).layers["0"].bits, remembered(net[0]).layers[""].bits, remembered(nn.Linear(2, 2))
        (4, 4, None)
    """
    for name, child in module.named_modules():
        prefix = f"{clean(name)}." if clean(name) else ""
        _REMEMBERED[child] = quantization, prefix


def remembered(module: nn.Module) -> Quantization | None:
    """How this module was quantized last, with the names that layers have in it; None if it was not."""
    quantization, prefix = _REMEMBERED.get(module, (None, ""))
    found = None if quantization is None else within(quantization, prefix)
    return found if found and found.layers else None


def within(quantization: Quantization, prefix: str) -> Quantization:
    """The part of it that belongs to one module of the model, by the names that layers have there.

    Where values come in on the grid of a layer outside, that grid is the layer's own.

    Example:
        >>> layers = {"a.0": Layer("a.0", 8, output="a.0:out"), "b.0": Layer("b.0", 8, input="a.0:out")}
        >>> part = within(Quantization(layers, {"a.0:out": Range(0.1, 0)}), "b.")
        >>> part.layers, part.ranges
        ({'0': Layer(module='0', bits=8, norm=None, clip=None, input='0:in', output=None)}, {'0:in': Range(scale=0.1, \
zero_point=0, bits=8)})
    """
    if not prefix:
        return quantization
    layers, ranges = dict[str, Layer](), dict[str, Range]()
    inside = {name: layer for name, layer in quantization.layers.items() if f"{name}.".startswith(prefix)}
    for name, layer in inside.items():
        own, places = _rest(name, prefix), dict[str, str | None]()
        for kind, place in (("in", layer.input), ("out", layer.output)):
            places[kind] = None
            if place is not None:
                owner = place.rpartition(":")[0]
                places[kind] = f"{_rest(owner, prefix)}:{place.rpartition(':')[2]}" if owner in inside else f"{own}:in"
                ranges[str(places[kind])] = quantization.ranges[place]
        norm = None if layer.norm is None else _rest(layer.norm, prefix)
        layers[own] = replace(layer, module=own, norm=norm, input=places["in"], output=places["out"])
    left = {_rest(name, prefix): why for name, why in quantization.left.items() if name.startswith(prefix)}
    return Quantization(layers, ranges, left)


def _rest(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) if f"{name}." != prefix else ""


def _pair(clip: Any) -> tuple[float, float | None] | None:
    return None if clip is None else (clip[0], clip[1])
