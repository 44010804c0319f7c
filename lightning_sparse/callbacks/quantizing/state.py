"""What a checkpoint holds of a QuantizeSparse: tensors, numbers and plain containers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_sparse.callbacks.base import MisconfigurationException, refers
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import modules_of
from lightning_sparse.quant.quantization import Quantization, remember
from lightning_sparse.quant.quantizer import Quantizer

if TYPE_CHECKING:
    from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse


def saved(callback: "QuantizeSparse") -> dict[str, Any]:
    """Of a callback that quantizes now."""
    assert callback.quantizer is not None
    quantizer = callback.quantizer
    state: dict[str, Any] = {
        "version": 1,
        "quantization": quantizer.quantization.state_dict(),
        "layers": Quantization(quantizer.layers).state_dict()["layers"],  # with places that nothing has reached
        "act_bits": callback.act_bits,
        "ranges": quantizer.state_dict(),
        "steps": callback.steps,
        "begun": callback.begun,
    }
    if callback.zeros is not None:
        state["zeros"] = {"densities": dict(callback.densities), "engine": callback.zeros.state_dict()}
    return state


def rebuilt(state: Mapping[str, Any], model: nn.Module, name: str) -> Quantizer:
    """A quantizer of a model that goes on from a saved state; weights show floats.

    Raises:
        ValueError: if it is of another model.
    """
    known = Quantization.from_state(state["quantization"])
    layers = Quantization.from_state({"layers": state["layers"], "ranges": {}, "left": {}}).layers
    modules = modules_of(model)
    lost = [n for layer in layers.values() for n in (layer.module, layer.norm) if n is not None and n not in modules]
    raise_problems([f"the model has no module {n!r}, which was quantized" for n in lost], name)
    quantizer = Quantizer(model, layers, act_bits=state["act_bits"], left=known.left)
    quantizer.load_state_dict(state["ranges"])
    quantizer.close()
    return quantizer


def remember_all(callback: "QuantizeSparse", trainer: Any, pl_module: nn.Module) -> None:
    """What exports ask for: all that the QuantizeSparse of a Trainer have found, each for its own layers."""
    parts = [each.quantization for each in trainer.callbacks if isinstance(each, type(callback)) and each.quantization]
    layers = {name: layer for part in parts for name, layer in part.layers.items()}
    ordered = {name: layers[name] for name in modules_of(pl_module) if name in layers}
    weights = {layer.weight for layer in layers.values()}
    left = {name: why for part in parts for name, why in part.left.items() if name not in weights}
    remember(pl_module, Quantization(ordered, {n: r for part in parts for n, r in part.ranges.items()}, left))


def for_evaluation(callback: "QuantizeSparse", pl_module: nn.Module) -> Quantizer:
    """What the last fit, or a checkpoint, has left.

    Raises:
        MisconfigurationException: if that is nothing, or of another model.
    """
    if "quantization" not in callback.state or not refers(callback.model, pl_module):
        raise MisconfigurationException(
            f"{callback.name}: this model is not quantized yet: ranges are found when it is fitted. Call fit first, "
            "or load a checkpoint that was saved after it began, or leave the callback out to evaluate floats"
        )
    quantizer = rebuilt(callback.state, pl_module, callback.name)
    quantizer.freeze()
    return quantizer
