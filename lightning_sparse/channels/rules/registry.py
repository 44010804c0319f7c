"""Rules by the name of the operation."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_sparse.channels.flow import Flow, Label


def tree_tensors(value: Any) -> list[Tensor]:
    """Tensors in nested containers."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


class Op:
    """One operation that ran.

    Args:
        func: the operator.
        args: as it was called.
        kwargs: as it was called.
        result: what came out.

    Attributes:
        name: in aten, without the underscore of the in-place variant.
        in_place: whether it wrote into its first argument.
        writes_out: whether it wrote into other arguments (``out=``).
        inputs: tensors that went in, each occurrence.
        outputs: tensors that came out.
        written: tensors that it wrote into.
        fixed: whether all that went in was made of parameters and buffers only.
    """

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.func, self._args, self._kwargs, self.result = func, args, kwargs, result
        schema = func._schema
        written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
        given = [args[i] if i < len(args) else kwargs.get(a.name) for i, a in enumerate(schema.arguments)]
        self.written = tree_tensors([value for value, is_written in zip(given, written, strict=True) if is_written])
        self.space, _, self.full_name = schema.name.partition("::")
        self.in_place = bool(written) and written[0]
        self.writes_out = any(written[1:]) and "batch_norm" not in self.full_name  # running statistics: its rule knows
        self.name = self.full_name[:-1] if self.in_place and self.full_name.endswith("_") else self.full_name
        self.inputs = tree_tensors((args, kwargs))
        self.outputs = tree_tensors(result)
        self.fixed = False

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        values = {}
        for i, argument in enumerate(self.func._schema.arguments):
            if i < len(self._args):
                values[argument.name] = self._args[i]
            else:
                values[argument.name] = self._kwargs.get(argument.name, argument.default_value)
        return values

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these arguments that the operator has."""
        return next((self.given[n] for n in names if n in self.given), default)

    @property
    def x(self) -> Tensor:
        """The first tensor that went in."""
        return self.inputs[0]

    @property
    def out(self) -> Tensor:
        """The first tensor that came out."""
        return self.outputs[0]

    @property
    def turns(self) -> bool:
        """Whether it turned its first argument round in place: its labels are still those of before."""
        return self.in_place and self.space == "aten" and self.name in ("t", "transpose")

    @property
    def pointwise(self) -> bool:
        """Whether torch says that it works element by element."""
        return torch.Tag.pointwise in self.func.tags


Rule = Callable[[Flow, Op], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
        return function

    return register


class NoRule(Exception):  # noqa: N818 (it is no error of anybody)
    """A rule cannot tell what happens here; everything that the operation touches is frozen."""


def dims_of(value: Any, ndim: int) -> list[int]:
    """Dimensions as a list of non-negative ints; None and an empty list are all of them."""
    if value is None or (isinstance(value, list | tuple) and not value):
        return list(range(ndim))
    return [int(d) % max(ndim, 1) for d in (value if isinstance(value, list | tuple) else [value])]


def zeros_stay(flow: Flow, op: Op) -> bool:
    """Whether in all tensors with labels that went in zero channels are zero."""
    return all(flow.known(t).zero for t in op.inputs if flow.labelled(t))


def names(text: str) -> frozenset[str]:
    """Words of a string."""
    return frozenset(text.split())


def fill(n: int) -> Label:
    """A dimension of constants."""
    return torch.zeros(n, dtype=torch.int64)
