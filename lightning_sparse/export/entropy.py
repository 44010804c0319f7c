"""How small a tensor could be: the entropy of where it is not zero, and of the bytes that are there."""

import math

import torch
from torch import Tensor


def positions_bits(size: int, live: int) -> float:
    """Bits that say which weights live when each lives by chance: size times the entropy of the live share.

    Example:
        >>> positions_bits(100, 50), round(positions_bits(100, 10), 2), positions_bits(100, 0)
        (100.0, 46.9, 0.0)
    """
    shares = [count / size for count in (live, size - live) if count]
    return size * sum(-share * math.log2(share) for share in shares) if size else 0.0


def counted_bits(counts: Tensor) -> float:
    """Bits of symbols that occur this often when each is coded on its own: their empirical entropy times their number.

    Args:
        counts: how often each symbol occurs.

    Example:
        >>> counted_bits(torch.tensor([4, 4, 0, 8]))
        24.0
    """
    seen = counts[counts > 0].double()
    return float((seen * (seen.sum() / seen).log2()).sum())


class PlaneCounts:
    """Counts the bytes of values, apart for each place in a value: an exponent says less than a mantissa.

    Args:
        itemsize: bytes of a value.

    Example:
        >>> planes = PlaneCounts(2)
        >>> planes.add(0, torch.tensor([1, 1, 2, 2], dtype=torch.uint8))
        >>> planes.add(1, torch.tensor([7, 7, 7, 7], dtype=torch.uint8))
        >>> planes.bits()
        4.0
    """

    def __init__(self, itemsize: int) -> None:
        self._counts = torch.zeros(itemsize, 256, dtype=torch.int64)

    def add(self, place: int, plane: Tensor) -> None:
        """One byte, uint8, of each of some more values: which byte, and what."""
        self._counts[place] += torch.bincount(plane, minlength=256)

    def bits(self) -> float:
        """The entropy of all that was added; tables that a code needs are not in it."""
        return sum(counted_bits(counts) for counts in self._counts)
