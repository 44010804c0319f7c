"""Multiply-adds of every parameter, counted operation by operation."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_sparse.channels.rules.registry import Op

_PRODUCTS = {"linear": (0, 1), "mkldnn_linear": (0, 1), "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1)}
_PRODUCTS |= {"addmm": (1, 2), "_addmm_activation": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2)}


class Costs:
    """FLOPs of one run by parameter, 2 per multiply-add; also of weights that were made of a parameter on the way.

    Attributes:
        flops: by name.
    """

    def __init__(self) -> None:
        self.flops: dict[str, float] = {}
        self._origin: Any = WeakTensorKeyDictionary()

    def name(self, tensor: Tensor, name: str) -> None:
        """This is the parameter of this name."""
        self._origin[tensor] = name

    def forget(self) -> None:
        """Let go of all tensors."""
        self._origin = WeakTensorKeyDictionary()

    def fixed(self, op: Op) -> bool:
        """Whether all numbers that go in are made of parameters and buffers only."""
        return bool(op.inputs) and all(t in self._origin for t in op.inputs if t.is_floating_point())

    def count(self, op: Op) -> None:
        """One more operation."""
        if "conv" in op.name and len(op.inputs) > 1 and op.inputs[1].ndim > 2:
            weight = op.inputs[1]
            turned = op.get("transposed", default="transpose" in op.name)
            pixels = op.x.numel() / op.x.shape[1] if turned else op.out.numel() / op.out.shape[1]
            self._add([weight], 2.0 * weight.numel() * pixels)
        elif op.name in _PRODUCTS:
            left, right = (op.inputs[i] for i in _PRODUCTS[op.name])
            self._add([right, left], 2.0 * op.out.numel() * left.shape[-1])
        elif op.fixed:
            source = max(op.inputs, key=Tensor.numel)  # the weight, of a weight and its scale
            if source in self._origin:
                for out in op.outputs:
                    self._origin[out] = self._origin[source]

    def _add(self, factors: list[Tensor], flops: float) -> None:
        for factor in factors:
            if (name := self._origin.get(factor)) is not None:
                self.flops[name] = self.flops.get(name, 0.0) + flops
                return
