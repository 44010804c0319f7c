"""How small values could be: the entropy of the bytes that are there."""

import torch
from torch import Tensor


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
