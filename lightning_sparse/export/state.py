"""What of a module goes into a file: tensors that can be written as they are, each once."""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sparse.core.select import clean
from lightning_sparse.export.container import METADATA, NAMES

_WAY_OUT = "; save such a model with torch.save"


class State(NamedTuple):
    """The tensors of a module.

    Attributes:
        tensors: by the names of the plain model, tied ones under their first.
        aliases: the other names of tied tensors, and their first.
        keys: the names in this module's ``state_dict``.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str]
    keys: dict[str, str]


def state_of(module: nn.Module) -> tuple[State, list[str]]:
    """The module's ``state_dict``, where it is, and what of it is not plain tensors.

    Example:
        >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> b.weight = a.weight
        >>> state, problems = state_of(nn.Sequential(a, b))
        >>> list(state.tensors), state.aliases, problems
        (['0.weight'], {'1.weight': '0.weight'}, [])
    """
    if not isinstance(module, nn.Module):
        return State({}, {}, {}), [f"module must be a torch.nn.Module, got {type(module).__name__}"]
    state, problems = State({}, {}, {}), []
    first: dict[tuple[Any, ...], str] = {}
    for key, value in module.state_dict().items():
        name = clean(key)
        if why := _unfit(name, value):
            problems.append(f"{key} {why}{_WAY_OUT}")
            continue
        if name in state.keys:
            problems.append(f"{key} and {state.keys[name]} are both {name} in a plain model")
        state.keys[name] = key
        known = first.setdefault(_place(value), name) if value.numel() else name
        if known == name:
            state.tensors[name] = value
        else:
            state.aliases[name] = known
    if sys.byteorder != "little":
        problems.append("this machine stores numbers with the highest byte first, the format does not")
    return state, problems


def _place(value: Tensor) -> tuple[Any, ...]:
    """The same for two tensors that are one."""
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def _unfit(name: str, value: object) -> str:
    """Why this cannot be written; "" if it can."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "is lazy and has no shape yet: run one batch through the model first"
    if type(value) not in (Tensor, nn.Parameter):
        return f"is a {type(value).__name__}, a tensor of its own kind"
    if value.layout != torch.strided:
        return f"has the layout {str(value.layout).removeprefix('torch.')}"
    if value.is_meta:
        return "is on the meta device and has no values: materialise the model first"
    if value.dtype not in NAMES:
        return f"is {str(value.dtype).removeprefix('torch.')}, which the format has no name for"
    return f"has a name that the format needs for itself ({METADATA})" if name == METADATA else ""
