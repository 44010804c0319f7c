"""Labels of the tensors of one run: which element of a parameter each index of a dimension stands for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_sparse.channels.labels import NO_CHANNEL, Ties

Label = Tensor | None  # int64 [size of the dimension]; None: no element of it is a channel
Policy = Literal["last", "first", "middle"]


@dataclass(frozen=True)
class Known:
    """What is known of a tensor.

    Attributes:
        labels: by dimension.
        zero: whether a channel that is zero in all its places is zero here.
        free: dimensions that came from size 1 by expansion: they fit whatever they meet.
    """

    labels: tuple[Label, ...]
    zero: bool = False
    free: frozenset[int] = frozenset()


class Flow:
    """The labels of tensors while a model runs, under one policy for dimensions that are split.

    A dimension of channels that is split in several (heads and their size) can be thinned along one of them only; the
    policy says which: the last (all heads get smaller), the first or the middle one (there are fewer heads).

    Args:
        policy: which part of a split dimension carries the channels.
        ties: of ids so far.
        known: of tensors so far.
    """

    def __init__(self, policy: Policy = "last", ties: Ties | None = None, known: Any = None) -> None:
        self.policy, self.ties = policy, Ties() if ties is None else ties
        self._known: Any = WeakTensorKeyDictionary() if known is None else known
        self.why = ""  # the operation that is running, for reasons
        self.at_choice: Callable[[], None] = lambda: None  # called when the policy decides

    def fork(self, policy: Policy) -> "Flow":
        """The same so far, under another policy from here on."""
        known: Any = WeakTensorKeyDictionary()
        for tensor, value in self._known.items():
            known[tensor] = value
        return Flow(policy, self.ties.copy(), known)

    def forget(self) -> None:
        """Let go of all tensors."""
        self._known = WeakTensorKeyDictionary()

    # what is known

    def known(self, tensor: Tensor) -> Known:
        """What is known of a tensor; one that came past the watch is found by its memory, or is a constant."""
        found: Known | None = self._known.get(tensor)
        if found is None:
            found = self._by_memory(tensor)
            self._known[tensor] = found
        sizes = [n for n, label in zip(tensor.shape, found.labels, strict=False) if label is None or len(label) == n]
        if len(sizes) != tensor.ndim or len(found.labels) != tensor.ndim:  # another shape was put in: .data, resize_
            self.freeze(found.labels, "the shape of a tensor was changed in place")
            found = self._known[tensor] = Known((None,) * tensor.ndim)
        return found

    def of(self, tensor: Tensor) -> list[Label]:
        """Labels by dimension."""
        return list(self.known(tensor).labels)

    def before(self, tensor: Tensor) -> list[Label]:
        """Labels as they were put, though the tensor has been turned since."""
        found: Known | None = self._known.get(tensor)
        return [None] * tensor.ndim if found is None else list(found.labels)

    def labelled(self, tensor: Tensor) -> bool:
        """Whether any dimension has channels."""
        return any(label is not None for label in self.known(tensor).labels)

    def concerned(self, tensor: Tensor) -> bool:
        """Whether rules are to look at it: it has channels, or dimensions that fit any."""
        known = self.known(tensor)
        return bool(known.free) or any(label is not None for label in known.labels)

    def put(self, tensor: Tensor, labels: Sequence[Label], zero: bool = False, free: Collection[int] = ()) -> None:
        """From now on the tensor has these labels; dimensions of size 1 have none."""
        kept = tuple(label if n > 1 else None for label, n in zip(labels, tensor.shape, strict=True))
        for label, n in zip(kept, tensor.shape, strict=True):
            assert label is None or len(label) == n, f"{len(label)} labels for {n} elements in {self.why}"
        self._known[tensor] = Known(kept, zero, frozenset(free))

    def _by_memory(self, tensor: Tensor) -> Known:
        nothing = Known((None,) * tensor.ndim)
        if tensor.layout != torch.strided or not (pointer := _pointer(tensor)):
            return nothing
        for other, value in list(self._known.items()):
            if other.layout != torch.strided or _pointer(other) != pointer:
                continue
            if all(label is None for label in value.labels):
                continue
            same = (other.shape, other.stride(), other.storage_offset())
            if same == (tensor.shape, tensor.stride(), tensor.storage_offset()):
                return Known(value.labels, value.zero, value.free)
            self.freeze(value.labels, "its memory is used in a way that cannot be followed")
        return nothing

    # what is said about labels

    def tie(self, a: Label, b: Label) -> None:
        """Elements at the same place leave together."""
        self.ties.tie(a, b, self.why)

    def freeze(self, labels: Sequence[Label] | Label, why: str = "an operation depends on its size or order") -> None:
        """These stay."""
        for label in [labels] if isinstance(labels, Tensor) or labels is None else labels:
            self.ties.freeze(label, why if why == NO_CHANNEL else f"{why} ({self.why})")

    def lossy(self, label: Label) -> None:
        """Removing these changes the result even where they are zero."""
        self.ties.lossy(label)

    def weighed(self, a: Label, b: Label) -> None:
        """A sum over these of weights only."""
        self.ties.weighed(a, b)

    def read(self, label: Label) -> None:
        """Something sums over these."""
        self.ties.read(label)

    def made(self, label: Label) -> None:
        """A layer makes these."""
        self.ties.made(label)

    def is_made(self, label: Label) -> bool:
        """Whether a layer makes these."""
        return label is not None and self.ties.is_made(label)

    def alike(self, label: Label, parts: int) -> Label:
        """The first of ``parts`` equal parts of a dimension, after all parts are tied place by place."""
        if label is None:
            return None
        rows = label.view(parts, -1)
        if parts > 1:
            self.tie(rows[1:], rows[:1])
        return rows[0]


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # no storage of its own: fake and wrapped tensors
        return 0
