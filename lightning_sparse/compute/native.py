"""The compiled kernels, or None: what calls them stays correct without, only slower."""

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_sparse.compute.build import PATHS, BuildError, levels, library
from lightning_sparse.compute.proof import signed
from lightning_sparse.compute.verdict import verdict

log = logging.getLogger(__name__)
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
VARIABLE = "LIGHTNING_SPARSE_SIMD"
_chosen: list[str] = []  # what `using` asks for, innermost last


@dataclass(frozen=True)
class Native:
    """The kernels of one instruction set."""

    library: ctypes.CDLL
    isa: str
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def function(self, name: str) -> Callable[..., int]:
        """A kernel by its name without the instruction set; it takes integers, and addresses."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = signed(getattr(self.library, f"{name}_{self.isa}"), name)
        return cast(Callable[..., int], found)


class KernelError(RuntimeError):
    """The kernels that were asked for by name cannot be used on this machine; the message says why."""


@cache
def kernels(isa: str) -> Native:
    """The kernels of an instruction set; those wider than the portable ones have agreed with these on this machine.

    Raises:
        KernelError: if they do not.
        BuildError: if they cannot be compiled.
    """
    path = library(isa)
    if isa != "portable" and (why := verdict(path, isa, library("portable"))):
        raise KernelError(why)
    return Native(_loaded(path), isa)


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from error


@cache
def _automatic() -> Native | None:
    """The widest that can be used; what could not is said."""
    problems: list[str] = []
    for isa in levels():
        try:
            found = kernels(isa)
        except (BuildError, KernelError) as error:
            problems.append(f"{isa}: {error}")
            continue
        if problems:
            log.warning("Sparse layers use their %s kernels, not wider ones. %s", isa, ". ".join(problems))
        return found
    log.warning("Sparse layers use torch's own operators, which are slower. %s", problems[-1])
    return None


def native() -> Native | None:
    """The kernels for this processor, compiled and tried on first use; None without a compiler, which is said once.

    ``$LIGHTNING_SPARSE_SIMD`` chooses others: ``avx512``, ``avx2``, ``portable``, or ``torch`` for none.

    Raises:
        ValueError: if that variable says something else.
        KernelError: if kernels that were chosen by name fail their trial on this machine.
        BuildError: if they cannot be compiled.
    """
    asked = _chosen[-1] if _chosen else os.environ.get(VARIABLE)
    if not asked:
        return _automatic()
    if asked not in (*PATHS, "torch"):
        raise ValueError(f"{VARIABLE} must be one of {', '.join(PATHS)}, torch; got {asked!r}")
    if asked == "torch":
        return None
    try:
        return kernels(asked)
    except KernelError as error:
        raise KernelError(
            f"the {asked} kernels, chosen by name, cannot be used on this machine: {error}. Choose portable ones or "
            f"none: {VARIABLE}=portable or torch, or leave the choice to the program"
        ) from error


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


def call(function: Callable[..., int], numbers: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Call a kernel with numbers, then tensors; None is a null pointer.

    Raises:
        MemoryError: if the kernel could not get its scratch memory.
    """
    if function(*numbers, *[None if tensor is None else tensor.data_ptr() for tensor in tensors]):
        raise MemoryError("a sparse kernel found no memory for its scratch buffers")
