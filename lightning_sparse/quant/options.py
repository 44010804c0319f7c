"""Numbers of bits that cannot be."""

from collections.abc import Mapping
from typing import Any

from lightning_sparse.core.values import is_whole
from lightning_sparse.quant.grid import BITS

_ACT_BITS = (4, 5, 6, 7, 8)


def wrong_bits(bits: Any, others: str = "") -> list[str]:
    """What is wrong with bits of weights: a number, or one for each glob.

    Args:
        bits: what was given.
        others: what may be given instead of a number, for the message.

    Example:
        >>> wrong_bits(9), wrong_bits({"net.*": 4, "head": None})
        (['bits must be 2 to 8, got 9'], [])
    """
    if not isinstance(bits, Mapping):
        return [] if _is_bits(bits) else [f"bits must be 2 to 8{others}, got {bits!r}"]
    wrong = {glob: value for glob, value in bits.items() if value is not None and not _is_bits(value)}
    found = [f"bits={{{glob!r}: {value!r}}} must be 2 to 8, or None for float" for glob, value in wrong.items()]
    if any(not isinstance(glob, str) for glob in bits):
        found.append(f"bits must be by glob, got {list(bits)}")
    return found or ([] if bits else ["bits={} names nothing; give a number for all, or globs"])


def wrong_act_bits(bits: Any) -> list[str]:
    """What is wrong with bits of activations.

    Example:
        >>> wrong_act_bits(None), wrong_act_bits(3)
        ([], ['act_bits must be 4 to 8, or None for activations in float, got 3'])
    """
    if bits is None or (is_whole(bits) and bits in _ACT_BITS):
        return []
    return [f"act_bits must be 4 to 8, or None for activations in float, got {bits!r}"]


def _is_bits(value: Any) -> bool:
    return is_whole(value) and value in BITS
