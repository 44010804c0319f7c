"""Which module is running, and calls of modules from outside of all modules, to be made again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from lightning_sparse.core.select import clean


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        module: what was called.
        args: with detached tensors; outputs of earlier calls are :class:`Output`.
        kwargs: alike.
        autocast: device type and dtype under autocast, or None.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    autocast: tuple[str, torch.dtype] | None


@dataclass(frozen=True)
class Output:
    """The i-th tensor in what a call returned."""

    call: int
    leaf: int


class Replay:
    """Makes recorded calls again; what one call returned goes into the next as it did then.

    Args:
        calls: in order.
    """

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def __call__(self) -> list[Any]:
        """What the calls return whose outputs do not go into others as they are."""
        results: list[Any] = []
        inner: set[int] = set()

        def real(value: Any) -> Any:
            if not isinstance(value, Output):
                return value
            inner.add(value.call)
            return tensors_in(results[value.call])[value.leaf]

        for call in self.calls:
            with _autocast(call.autocast):
                args, kwargs = tree_map(real, (call.args, dict(call.kwargs)), is_leaf=_is_output)
                results.append(call.module(*args, **kwargs))
        return [result for i, result in enumerate(results) if i not in inner]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _is_output(value: Any) -> bool:
    return isinstance(value, Output)


def _autocast(state: tuple[str, torch.dtype] | None) -> AbstractContextManager[Any]:
    return nullcontext() if state is None else torch.autocast(state[0], dtype=state[1])


class CallWatch:
    """Follows calls of a model's modules while it is open, by hooks on all of them.

    A module whose ``forward`` was replaced on the object (Lightning's way through DDP, compiled modules) is looked
    through: the calls that it makes count as calls from outside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names = {id(m): clean(name) for name, m in model.named_modules()}
        self._stack: list[nn.Module] = []
        self.calls: list[Call] = []
        self.at_output: Callable[[Any], None] = lambda output: None  # with what the model itself returns
        self.at_norm: Callable[[str, Any], None] = lambda name, x: None  # with what goes into a norm without weights
        self._outputs: dict[int, tuple[Tensor, Output]] = {}  # tensors are held, so that ids stay theirs

    @property
    def where(self) -> str:
        """The name of the innermost module that is running."""
        for module in reversed(self._stack):
            if name := self._names[id(module)]:
                return name
        return "the model"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Open for the block."""
        handles: list[RemovableHandle] = []
        for module in self.model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()

    def settle(self) -> None:
        """The run is over: let go of its outputs and of its graph; what went in stays for :meth:`replay`."""
        self._outputs = {}
        given = [tree_map(_detached, (c.args, c.kwargs)) for c in self.calls]
        self.calls = [replace(c, args=args, kwargs=kw) for c, (args, kw) in zip(self.calls, given, strict=True)]

    def replay(self) -> Replay:
        """The calls, to be made again; nothing is kept here."""
        self.settle()
        calls, self.calls = self.calls, []
        return Replay(calls)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if _borrowed(module):
            return
        self._stack.append(module)
        if isinstance(module, _NormBase) and args and module.weight is None:
            self.at_norm(self._names[id(module)], args[0])

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if not any(m is module for m in self._stack):  # another model's, or looked through
            return
        while self._stack.pop() is not module:
            pass
        output = rest[-1]
        if self._stack or len(rest) < 2 or output is None:  # the last two: of a call that raised
            return
        kwargs = rest[0]
        if module is getattr(self.model, "_orig_mod", self.model):
            self.at_output(output)
        given = tree_map(self._given, (args, kwargs))
        self.calls.append(Call(module, given[0], given[1], _autocast_state((args, kwargs))))
        for i, tensor in enumerate(tensors_in(output)):
            self._outputs[id(tensor)] = (tensor, Output(len(self.calls) - 1, i))

    def _given(self, value: Any) -> Any:
        return self._outputs[id(value)][1] if id(value) in self._outputs else value


def _borrowed(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _autocast_state(given: Any) -> tuple[str, torch.dtype] | None:
    device = next((t.device.type for t in tree_leaves(given) if isinstance(t, Tensor)), "cpu")
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested containers and plain objects, in order.

    Example:
        >>> [t.shape[0] for t in tensors_in({"a": [torch.zeros(2)], "b": (3, torch.zeros(1))})]
        [2, 1]
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    if id(value) in seen or isinstance(value, nn.Module | type | str | bytes | int | float):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        _collect(part, found, seen)
