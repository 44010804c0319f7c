"""The compiled kernels, or None: what calls them stays correct without, only slower."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_sparse.compute.build import BuildError, best, library

log = logging.getLogger(__name__)
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_chosen: list[str] = []  # what `using` asks for, innermost last


@dataclass(frozen=True)
class Native:
    """The kernels of one instruction set."""

    library: ctypes.CDLL
    isa: str

    def function(self, name: str) -> Callable[..., int]:
        """A kernel by its name without the instruction set."""
        found: Callable[..., int] = getattr(self.library, f"{name}_{self.isa}")
        return found


@cache
def _native(isa: str) -> Native | None:
    try:
        return Native(ctypes.CDLL(str(library(isa))), isa)
    except (BuildError, OSError) as error:
        log.warning("Sparse layers use torch's own operators, which are slower: %s", error)
        return None


def native() -> Native | None:
    """The kernels for this processor, compiled on the first call; None without a compiler, which is said once."""
    if not _chosen:
        return _native(best())
    return None if _chosen[-1] == "torch" else _native(_chosen[-1])


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Within the block: the kernels of this instruction set, or torch's operators.

    Args:
        isa: ``"avx512"``, ``"avx2"``, ``"portable"``, as far as the processor has them; ``"torch"`` for none.

    Example:
        >>> with using("torch"):
        ...     native() is None
        True
    """
    _chosen.append(isa)
    try:
        yield
    finally:
        _chosen.pop()


def call(function: Callable[..., int], *arguments: Tensor | int | None) -> None:
    """Call a kernel: tensors as pointers, None as a null pointer.

    Raises:
        MemoryError: if the kernel could not get its scratch memory.
    """
    plain: list[Any] = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    converted = [
        ctypes.c_void_p(p) if a is None or isinstance(a, Tensor) else ctypes.c_int(p)
        for a, p in zip(arguments, plain, strict=True)
    ]
    if function(*converted):
        raise MemoryError("a sparse kernel found no memory for its scratch buffers")
