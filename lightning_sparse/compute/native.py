"""The compiled kernels, or None: what calls them stays correct without, only slower."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from lightning_sparse.compute.build import BuildError, best, library

log = logging.getLogger(__name__)
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
SIGNATURES = {
    "linear_forward": "i" * 6 + "p" * 6,
    "linear_backward": "i" * 7 + "p" * 11,
    "conv_forward": "i" * 3 + "p" * 7,
    "conv_backward": "i" * 3 + "p" * 12,
}
_TYPES = {"i": ctypes.c_int, "p": ctypes.c_void_p}
_chosen: list[str] = []  # what `using` asks for, innermost last


@dataclass(frozen=True)
class Native:
    """The kernels of one instruction set."""

    library: ctypes.CDLL
    isa: str
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def function(self, name: str) -> Callable[..., int]:
        """A kernel by its name without the instruction set; it takes integers, and tensors as :func:`address`."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = getattr(self.library, f"{name}_{self.isa}")
            found.argtypes = [_TYPES[letter] for letter in SIGNATURES[name]]
        return cast(Callable[..., int], found)


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


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers are; None is a null pointer."""
    return None if tensor is None else tensor.data_ptr()


def call(function: Callable[..., int], numbers: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Call a kernel with numbers, then tensors.

    Raises:
        MemoryError: if the kernel could not get its scratch memory.
    """
    if function(*numbers, *map(address, tensors)):
        raise MemoryError("a sparse kernel found no memory for its scratch buffers")
