"""A model is put back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Journal:
    """How a model is now, without copies of its parameters: their memory is kept, and given back.

    Buffers are copied. Attributes of modules are noted one level deep.

    Args:
        model: any module.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> journal = Journal(net)
        >>> net.out_features = 1
        >>> _ = net.weight.requires_grad_(False).set_(torch.zeros(1, 3))
        >>> journal.undo()
        >>> net.out_features, net.weight.shape
        (2, torch.Size([2, 3]))
    """

    def __init__(self, model: nn.Module) -> None:
        plain = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._modules = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in plain]
        self._scripts = [(m, m.training) for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
        self._parameters = [(p, p.detach(), p.grad) for p in model.parameters()]
        strided = [b for b in model.buffers() if b.layout == torch.strided]
        self._buffers = [(b, b.detach(), b.detach().clone()) for b in strided]

    @torch.no_grad()
    def undo(self) -> None:
        """Put everything back."""
        for module, attributes, parameters, buffers in self._modules:
            _refill(vars(module), attributes)
            _refill(module._parameters, parameters)
            _refill(module._buffers, buffers)
        for script, mode in self._scripts:
            if script.training != mode:
                script.train(mode)
        for parameter, memory, gradient in self._parameters:
            if parameter.layout == torch.strided and not _same(parameter, memory):
                parameter.grad = None
                parameter.set_(memory)  # type: ignore[call-overload]  # the stubs know storages only
            parameter.grad = gradient
        for buffer, memory, content in self._buffers:
            if not _same(buffer, memory):
                buffer.set_(memory)  # type: ignore[call-overload]
            if not torch.equal(buffer, content):
                buffer.copy_(content)


def _same(tensor: Tensor, memory: Tensor) -> bool:
    alike = tensor.shape == memory.shape and tensor.stride() == memory.stride()
    return alike and tensor.data_ptr() == memory.data_ptr()


def _refill(mapping: dict[str, Any], content: dict[str, Any]) -> None:
    if mapping.keys() != content.keys() or any(mapping[k] is not v for k, v in content.items()):
        mapping.clear()
        mapping.update(content)


@contextmanager
def undoable(model: nn.Module) -> Iterator[None]:
    """Whatever is cut, set or switched inside the block is as before after it; no weights are copied.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> with undoable(net):
        ...     _ = net.eval()
        >>> net.training
        True
    """
    journal = Journal(model)
    try:
        yield
    finally:
        journal.undo()
