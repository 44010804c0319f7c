"""Element ids, the ties between them, what is frozen and why."""

from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT = 0  # the id of an element that is no channel of a parameter: inputs, positions, constants
NO_CHANNEL = "it is no axis of channels"  # frozen without a word in the report: kernels, rows of tables


class Ties:
    """Which elements of parameters leave together.

    Every element of every dimension of a parameter or buffer has an id from 1 on. A tie says that two elements leave
    together or stay together; an element that meets a constant is frozen.

    Args:
        size: one more than the largest id so far.

    Example:
        >>> ties = Ties()
        >>> a, b = ties.new(3), ties.new(3)
        >>> ties.tie(a, b, "add")
        >>> ties.freeze(b[:1], "the model's output")
        >>> classes = ties.classes()
        >>> classes.of[a].tolist() == classes.of[b].tolist()
        True
        >>> [classes.why(int(i)) for i in a]
        ["the model's output", None, None]
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._lossy: list[Tensor] = []
        self._weighed: list[tuple[Tensor, Tensor]] = []
        self._read: list[Tensor] = []
        self._made: list[Tensor] = []
        self._makers: set[int] = set()

    def copy(self) -> "Ties":
        """The same so far, to be continued another way."""
        other = Ties(self.size)
        for name in ("_left", "_right", "_frozen", "_lossy", "_weighed", "_read", "_made"):
            setattr(other, name, list(getattr(self, name)))
        other._makers = set(self._makers)
        return other

    def new(self, n: int) -> Tensor:
        """``n`` fresh ids, int64 [n]."""
        self.size += n
        return torch.arange(self.size - n, self.size)

    def tie(self, a: Tensor | None, b: Tensor | None, why: str) -> None:
        """Elements at the same place (after broadcasting) leave together; None is a constant, which freezes."""
        if a is b:
            return
        if a is None or b is None:
            self.freeze(a if b is None else b, _beside(why))
            return
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        a, b = a.reshape(-1), b.reshape(-1)
        if not bool(a.all()) or not bool(b.all()):
            self.freeze(torch.where(b == CONSTANT, a, CONSTANT), _beside(why))
            self.freeze(torch.where(a == CONSTANT, b, CONSTANT), _beside(why))
            both = (a != CONSTANT) & (b != CONSTANT)
            a, b = a[both], b[both]
        self._left.append(a)
        self._right.append(b)

    def freeze(self, ids: Tensor | None, why: str) -> None:
        """These elements stay, for this reason."""
        if ids is not None and ids.numel():
            self._frozen.append((ids, why))

    def lossy(self, ids: Tensor | None) -> None:
        """Removing these changes the result even where they are zero."""
        if ids is not None:
            self._lossy.append(ids)

    def weighed(self, a: Tensor | None, b: Tensor | None) -> None:
        """A sum over these of weights only: rows that make a silent channel are zero in it, others count."""
        if a is not None and b is not None:
            self._weighed.append((a, b))

    def read(self, ids: Tensor | None) -> None:
        """Something sums over these: they are not merely an output."""
        if ids is not None:
            self._read.append(ids)

    def made(self, ids: Tensor | None) -> None:
        """A layer makes these."""
        if ids is not None:
            self._made.append(ids)
            self._makers.add(int(ids[0]))

    def is_made(self, ids: Tensor) -> bool:
        """Whether a layer makes these."""
        return int(ids[0]) in self._makers

    def classes(self) -> "Classes":
        """What leaves together: connected components."""
        of = components(self.size, self._left, self._right)
        reasons: list[str] = []
        reason = torch.full((self.size,), -1)
        witness = torch.zeros(self.size, dtype=torch.int64)
        for ids, why in reversed(self._frozen):  # the first reason is the one that stays
            ids = ids.reshape(-1)
            ids = ids[ids != CONSTANT]
            reason[of[ids]] = len(reasons)
            witness[of[ids]] = ids
            reasons.append(why)
        maker, makes = torch.zeros(self.size, dtype=torch.int64), torch.zeros(self.size, dtype=torch.bool)
        for ids in reversed(self._made):
            maker[of[ids]] = ids
            makes[ids] = True
        weighed = [a[~makes[a] & ~makes[b]] for a, b in self._weighed]
        return Classes(of, reason, witness, reasons, _flags(of, self._lossy + weighed), _flags(of, self._read), maker)


@dataclass(frozen=True)
class Classes:
    """Connected components of elements.

    Attributes:
        of: int64 [ids], the class of an element: its least id.
        reason: int64 [ids], by class: index into ``reasons``, -1 where it is not frozen.
        witness: int64 [ids], by class: the element that was frozen.
        reasons: sentences.
        lossy: bool [ids], by class.
        read: bool [ids], by class.
        maker: int64 [ids], by class: the element of the first layer that makes it; 0 where none does.
    """

    of: Tensor
    reason: Tensor
    witness: Tensor
    reasons: list[str]
    lossy: Tensor
    read: Tensor
    maker: Tensor

    def why(self, element: int) -> str | None:
        """Why an element stays; None when it may go."""
        found = int(self.reason[self.of[element]])
        return None if found < 0 else self.reasons[found]


def _beside(why: str) -> str:
    return f"it meets inputs, constants or positions ({why})"


def _flags(of: Tensor, marked: list[Tensor]) -> Tensor:
    flags = torch.zeros(of.numel(), dtype=torch.bool)
    for ids in marked:
        flags[of[ids.reshape(-1)]] = True
    flags[CONSTANT] = False
    return flags


def components(size: int, left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The least element of each element's connected component, int64 [size].

    Hooking of the larger label under the smaller one and pointer jumping, vectorised. Source: Shiloach & Vishkin 1982,
    https://doi.org/10.1016/0196-6774(82)90008-6.

    Args:
        size: number of elements.
        left: int64 1-D tensors of one end of the edges.
        right: the other ends, alike.

    Example:
        >>> components(5, [torch.tensor([4, 1])], [torch.tensor([3, 3])]).tolist()
        [0, 1, 2, 1, 1]
    """
    label = torch.arange(size)
    if not left:
        return label
    a, b = torch.cat(left), torch.cat(right)
    while a.numel():
        low, high = torch.minimum(label[a], label[b]), torch.maximum(label[a], label[b])
        open_edges = low != high
        a, b, low, high = a[open_edges], b[open_edges], low[open_edges], high[open_edges]
        label.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(jumped := label[label], label):
            label = jumped
    return label
