"""A compressed checkpoint: one file, as small as its zeros and integers allow, that loads into plain PyTorch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.export.coded import codes_for
from lightning_sparse.export.container import DTYPES, Part, write
from lightning_sparse.export.decode import decode
from lightning_sparse.export.encode import Encoded, as_integers, encode
from lightning_sparse.export.reader import reading
from lightning_sparse.export.rows import Row, metadata_of, read_rows
from lightning_sparse.export.sizes import PackedReport, PackedTensor
from lightning_sparse.export.state import State, state_of
from lightning_sparse.quant.grid import Codes

Module = TypeVar("Module", bound=nn.Module)
_FREE, _TIMES = 2**30, 1000


@torch.no_grad()
def save_packed(module: nn.Module, path: str | PathLike[str], codes: Mapping[str, Codes] | None = None) -> PackedReport:
    """Write the module's ``state_dict`` into one small file, and say what it takes.

    Each tensor is stored in the smallest of three ways: as it is, compressed, or as its live values and the gaps
    between them, compressed. Values come back bit for bit, also -0.0, NaN and infinities. The file appears under its
    name when all of it is on the disk. It is a safetensors file, and needs nothing but zlib to be read.

    Args:
        module: any module whose ``state_dict`` holds plain tensors, on any device. Tied weights are stored once.
        path: of the file.
        codes: integers and scales to store in place of these weights, by name; code times scale comes back.

    Raises:
        ValueError: on a state or codes that cannot be stored, or a path that cannot be written; all at once.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(100, 100)
        >>> with torch.no_grad():
        ...     _ = net.weight.masked_fill_(torch.eye(100) == 0, 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_packed(net, f"{folder}/net.safetensors")
        ...     weights = load_packed(f"{folder}/net.safetensors")
        >>> report.dense_bytes, report.bytes < 2000, weights["weight"].equal(net.weight)
        (40400, True, True)
    """
    path = Path(path)
    state, problems = state_of(module)
    found, wrong = codes_for(state, codes)
    raise_problems([*problems, *wrong, *_unwritable(path)], f"cannot save {path}")
    encoded = {
        name: encode(name, _here(tensor), _codes_here(found.get(name))) for name, tensor in state.tensors.items()
    }
    parts = [part for one in encoded.values() for part in one.parts]
    raise_problems(_doubles(parts), f"cannot save {path}")
    rows = {name: one.row for name, one in encoded.items()}
    size = write(path, parts, metadata_of(rows, state.aliases))
    tensors = tuple(_reported(name, one) for name, one in encoded.items())
    return PackedReport(tensors, size, sum(row.dense_bytes for row in tensors))


@overload
def load_packed(
    path: str | PathLike[str], module: None = None, *, max_bytes: int | None = None
) -> dict[str, Tensor]: ...
@overload
def load_packed(path: str | PathLike[str], module: Module, *, max_bytes: int | None = None) -> Module: ...
def load_packed(
    path: str | PathLike[str], module: Module | None = None, *, max_bytes: int | None = None
) -> dict[str, Tensor] | Module:
    """The tensors of a file of :func:`save_packed`: as a dict, or in a module, which is returned.

    The module must have these names, shapes and types. All of the file is read, decompressed and checked before its
    first parameter changes. Nothing in the file is code.

    Args:
        path: of the file.
        module: what to load them into, on any device; None for a dict on the CPU. Tied tensors are one there too.
        max_bytes: the most that the tensors may take in memory. None: a module takes what it has; a dict 1 GiB or a
            thousand times the file, whichever is more. A few bytes can claim any number of zeros.

    Raises:
        ValueError: if the file is not what was written, is of another version, claims too much, or does not fit the
            module: then with everything that differs. The module is as it was.
        FileNotFoundError: if there is none.

    Example:
        >>> import tempfile
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_packed(net, f"{folder}/net.safetensors")
        ...     load_packed(f"{folder}/net.safetensors", other).weight.equal(net.weight)
        True
    """
    path = Path(path)
    state, problems = (None, []) if module is None else state_of(module)
    raise_problems(problems, f"cannot load {path}")
    with reading(path) as file:
        rows, aliases = read_rows(file)
        if state is not None:
            raise_problems(_misfits(rows, aliases, state), "it does not fit the module")
        limit = max(_FREE, _TIMES * file.size) if module is None and max_bytes is None else max_bytes
        _check_limit(rows, file.size, limit)
        found = {name: decode(file, name, row) for name, row in rows.items()}
        found |= {alias: found[name] for alias, name in aliases.items()}
        if state is not None:
            raise_problems(_untied(found, state), "it does not fit the module")
    if module is None or state is None:
        return found
    module.load_state_dict({state.keys[name]: tensor for name, tensor in found.items()})
    return module


def _here(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_neg().cpu().contiguous()


def _codes_here(codes: Codes | None) -> Codes | None:
    return None if codes is None else replace(codes, codes=_here(codes.codes), scale=_here(codes.scale))


def _unwritable(path: Path) -> list[str]:
    if path.is_dir():
        return ["it is a folder; give the name of a file in it"]
    if path.is_symlink():
        return ["it is a link, which the file would take the place of; give the name that it leads to"]
    return [] if path.parent.is_dir() else [f"there is no folder {path.parent}; make it first"]


def _doubles(parts: list[Part]) -> list[str]:
    counts = Counter(part.name for part in parts)
    return [f"{name} is the name of a tensor and of a part of another" for name, count in counts.items() if count > 1]


def _reported(name: str, one: Encoded) -> PackedTensor:
    item = DTYPES[one.row.dtype].itemsize
    bits = 8 * item if one.row.bits is None else one.row.bits
    dense = one.row.dense_bytes
    return PackedTensor(name, one.kind, one.row.shape, one.live, bits, dense, one.size, one.bound / 8)


def _misfits(rows: Mapping[str, Row], aliases: Mapping[str, str], state: State) -> list[str]:
    """Where file and module differ in names, shapes and types."""
    theirs = {name: rows[aliases.get(name, name)] for name in [*rows, *aliases]}
    ours = {name: state.tensors[state.aliases.get(name, name)] for name in state.keys}
    problems = [f"{name} is in the file, but not in the module" for name in theirs if name not in ours]
    problems += [f"{name} is in the module, but not in the file" for name in ours if name not in theirs]
    for name in theirs.keys() & ours.keys():
        row, tensor = theirs[name], ours[name]
        if row.shape != tuple(tensor.shape):
            problems.append(f"{name} has shape {list(row.shape)} in the file and {list(tensor.shape)} in the module")
        if DTYPES[row.dtype] != tensor.dtype:
            kinds = [str(one).removeprefix("torch.") for one in (DTYPES[row.dtype], tensor.dtype)]
            problems.append(f"{name} is {kinds[0]} in the file and {kinds[1]} in the module")
    return sorted(problems)


def _untied(found: Mapping[str, Tensor], state: State) -> list[str]:
    """Names that share one tensor in the module, and have two in the file."""
    pairs = ((alias, name, found[alias], found[name]) for alias, name in state.aliases.items())
    differ = [(a, b) for a, b, x, y in pairs if not as_integers(x.view(-1)).equal(as_integers(y.view(-1)))]
    return [f"{a} and {b} are one tensor in the module, and differ in the file" for a, b in differ]


def _check_limit(rows: Mapping[str, Row], size: int, limit: int | None) -> None:
    needed = sum(row.dense_bytes for row in rows.values())
    if limit is not None and needed > limit:
        words = f"its {size:,} bytes claim to hold {needed:,}, more than {limit:,}"
        raise ValueError(f"{words}; load it into a module, or with max_bytes={needed} if you trust it")
