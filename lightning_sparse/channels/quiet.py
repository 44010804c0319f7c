"""A run that leaves no trace, on paths that can be watched."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lightning_sparse.channels.journal import undoable
from lightning_sparse.core.probe import untouched_randomness


@contextmanager
def plain_paths() -> Iterator[None]:
    """Attention without its fused path, compiled code as it was written."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with uncompiled():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled code runs as it was written: for what is not run again, compiling is not worth while (torch 2.6 on)."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stance: Any = torch.compiler.set_stance
            stack.enter_context(stance("force_eager"))
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient; modes, buffers and random states are afterwards as before."""
    with untouched_randomness(), undoable(model), torch.no_grad():
        model.eval()
        yield
