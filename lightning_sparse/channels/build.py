"""From classes of elements to atoms."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sparse.channels.atoms import Atom, Place
from lightning_sparse.channels.labels import NO_CHANNEL, Classes


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor; its elements have the ids from ``first`` on."""

    name: str
    dim: int
    first: int
    size: int

    def __str__(self) -> str:
        return f"{self.name}:{self.dim}"


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> list[Axis]:
    """Every dimension that is longer than 1, in order; ids begin at 1 and have no gaps.

    Example:
        >>> [str(axis) + f" from {axis.first}" for axis in numbered({"a": (2, 1), "b": (3,)})]
        ['a:0 from 1', 'b:0 from 3']
    """
    axes, first = [], 1
    for name, shape in shapes.items():
        for dim, n in enumerate(shape):
            if n > 1:
                axes.append(Axis(name, dim, first, n))
                first += n
    return axes


def atoms(axes: Sequence[Axis], classes: Classes) -> tuple[Atom, ...]:
    """Classes that lie alike in the same dimensions make one atom, whose channels they are.

    Args:
        axes: all of them, in the order of ids, without gaps.
        classes: of the elements.

    Returns:
        Atoms of two channels or more, in the order in which the model has their tensors.
    """
    if not axes:
        return ()
    axis = torch.repeat_interleave(torch.arange(len(axes)), torch.tensor([a.size for a in axes]))
    of = classes.of[1:]  # ids begin at 1
    free = (classes.reason[of] < 0) & classes.read[of]
    signature = _signatures(axis, of, len(axes))
    ids = free.nonzero().flatten()
    ids = ids[of[ids].argsort(stable=True)]  # by class, then by axis and position
    groups: dict[int, list[Tensor]] = {}
    if ids.numel():
        counts = torch.bincount(of[ids])
        for members in torch.split(ids, counts[counts > 0].tolist()):
            groups.setdefault(int(signature[of[members[0]]]), []).append(members)
    rows = [torch.stack(group) for group in groups.values() if len(group) > 1]
    rows = [grid for grid in rows if _regular(axis[grid])]
    rows.sort(key=lambda grid: int(grid[0, 0]))
    return _named(axes, [(grid, axis[grid[0]]) for grid in rows], classes)


def _regular(columns: Tensor) -> bool:
    """Whether all channels lie alike, in two dimensions or more."""
    return bool((columns == columns[:1]).all()) and int(columns[0].max()) > int(columns[0].min())


def _signatures(axis: Tensor, of: Tensor, n: int) -> Tensor:
    """A number for each class: equal where classes have as many elements in each axis."""
    numbers = torch.randint(-(2**62), 2**62, (n,), generator=torch.Generator().manual_seed(0))
    return torch.zeros(of.numel() + 1, dtype=torch.int64).scatter_add_(0, of, numbers[axis])


def _named(axes: Sequence[Axis], grids: list[tuple[Tensor, Tensor]], classes: Classes) -> tuple[Atom, ...]:
    found, used = [], dict[str, int]()
    for grid, columns in grids:
        of = classes.of[grid[0, 0] + 1]
        places = []
        for a in sorted(set(columns.tolist())):
            index = grid[:, columns == a] + 1 - axes[a].first
            places.append(Place(axes[a].name, axes[a].dim, index))
        maker = int(classes.maker[of])
        owner = _owner(axes, maker).name if maker else places[0].name
        name = owner.rpartition(".")[0] or owner
        used[name] = used.get(name, 0) + 1
        unique = name if used[name] == 1 else f"{name}#{used[name]}"
        found.append(Atom(unique, tuple(places), bool(classes.lossy[classes.of[grid + 1]].any())))
    return tuple(found)


def _owner(axes: Sequence[Axis], element: int) -> Axis:
    low, high = 0, len(axes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if axes[middle].first <= element else (low, middle - 1)
    return axes[low]


def reasons(axes: Sequence[Axis], classes: Classes, found: Sequence[Atom], unused: Collection[str]) -> dict[str, str]:
    """Why dimensions stay; kernels and the like are not worth a word.

    Args:
        axes: all of them.
        classes: of their elements.
        found: what does not stay; a dimension that belongs to an atom in part needs no reason.
        unused: names of tensors that no operation read.
    """
    free = {(p.name, p.dim) for atom in found for p in atom.places}
    why = {}
    for axis in axes:
        if (axis.name, axis.dim) in free:
            continue
        if axis.name in unused:
            why[str(axis)] = "it is not used in this run"
            continue
        of = classes.of[axis.first : axis.first + axis.size]
        frozen = classes.reason[of] >= 0
        if not bool(frozen.any()):
            if bool((classes.maker[of] > 0).any()):
                read = bool(classes.read[of].any())
                why[str(axis)] = "its channels are all tied to each other" if read else "nothing in the model reads it"
            continue
        first = of[frozen.nonzero()[0, 0]]
        text, source = classes.reasons[int(classes.reason[first])], _owner(axes, int(classes.witness[first]))
        if source != axis:
            text = f"tied to {source}, which is frozen: {text}"
        elif text == NO_CHANNEL and not bool((classes.maker[of] > 0).any()):
            continue
        why[str(axis)] = text
    return why
