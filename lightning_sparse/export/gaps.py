"""Positions of live weights as distances between them: one byte each, and now and then a byte that only skips."""

import torch
from torch import Tensor

SKIP = 255


def to_gaps(positions: Tensor, start: int = 0) -> Tensor:
    """The zeros before each live weight, uint8; 255 stands for 255 zeros and no weight behind them.

    Gaps of weights that live by chance are geometric, so a Huffman code of them is close to the entropy of the mask
    (Han et al. 2016, Deep Compression, https://arxiv.org/abs/1510.00149, section 2, who use fewer bits a gap).

    Args:
        positions: flat indices of the live weights, int64, ascending, none before ``start``.
        start: where the gaps before ended.

    Example:
        >>> to_gaps(torch.tensor([2, 3, 259, 600]))
        tensor([  2,   0, 255,   0, 255,  85], dtype=torch.uint8)
    """
    if not len(positions):
        return torch.empty(0, dtype=torch.uint8)
    gaps = torch.diff(positions, prepend=torch.tensor([start - 1])).sub_(1)
    skips = gaps // SKIP
    if not skips.any():
        return gaps.to(torch.uint8)
    ends = torch.cumsum(skips + 1, 0)
    symbols = torch.full((int(ends[-1]),), SKIP, dtype=torch.uint8)
    symbols[ends - 1] = (gaps % SKIP).to(torch.uint8)
    return symbols


def from_gaps(symbols: Tensor, start: int = 0) -> tuple[Tensor, int]:
    """Where the live weights are, int64, and where the next gap begins.

    Args:
        symbols: uint8, at least one.
        start: where the gaps before ended.

    Example:
        >>> from_gaps(torch.tensor([2, 0, 255, 0, 255, 85], dtype=torch.uint8))
        (tensor([  2,   3, 259, 600]), 601)
    """
    if int(symbols.max()) < SKIP:
        positions = torch.cumsum(symbols.to(torch.int16).add_(1), 0, dtype=torch.int64).add_(start - 1)
        return positions, int(positions[-1]) + 1
    live = symbols != SKIP
    ends = torch.cumsum(symbols.to(torch.int16).add_(live), 0, dtype=torch.int64).add_(start)
    return ends[live] - 1, int(ends[-1])
