"""Which entries of a tensor live: exact top-k, masks as packed bits, and how small these could be."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sparse.core.sharded import local

_SAMPLE = 1 << 15  # entries looked at to bracket the k-th largest score
_SMALL = 1 << 17  # below this a plain selection is as fast as the bracket


def keep_top(scores: Tensor, k: int, among: Tensor) -> Tensor:
    """Mask of exactly the ``k`` largest ``scores`` among the allowed entries.

    Ties go to the lower index, so every rank and every run chooses alike. NaN ranks as minus infinity.

    Args:
        scores: real, any shape.
        k: how many to keep, ``0 <= k <= among.sum()``.
        among: bool, the shape of ``scores``: the entries that may be kept.

    Returns:
        A bool tensor of the shape of ``scores`` with exactly ``k`` entries set, all of them in ``among``.

    Raises:
        ValueError: if fewer than ``k`` entries are allowed.

    Example:
        >>> scores, among = torch.tensor([1.0, 3.0, 3.0, 3.0, 9.0]), torch.tensor([1, 1, 1, 1, 0]).bool()
        >>> keep_top(scores, 2, among).int().tolist()
        [0, 1, 1, 0, 0]
    """
    available = int(among.count_nonzero())
    if not 0 <= k <= available:
        raise ValueError(f"cannot keep {k} of {available} allowed entries")
    if k == available:
        return among.clone()
    if k == 0:
        return torch.zeros_like(among)
    flat = _ranked(scores, among).flatten()
    threshold = _kth_largest(flat, k)
    keep = flat > threshold
    missing = k - int(keep.count_nonzero())
    ties = (flat == threshold) & among.flatten()  # `among`: at -inf a forbidden entry would tie too
    keep[ties.nonzero().squeeze(1)[:missing]] = True
    return keep.view(among.shape)


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """The k-th largest entry, exactly.

    On a CPU selection from millions of entries costs many passes. A strided sample brackets the answer instead: three
    cheap passes leave a thin band to select from. When the bracket misses, the plain selection decides.
    """
    size = flat.numel()
    if flat.is_cuda or size < _SMALL:
        return _select(flat, k)
    sample = flat[:: max(1, size // _SAMPLE)].sort(descending=True).values
    rank = k / size * sample.numel()
    margin = 4 * rank**0.5 + 8  # four standard deviations of a sampled rank
    high = sample[int(max(rank - margin, 0))]
    low = sample[int(min(rank + margin, sample.numel() - 1))]
    above = int((flat > high).count_nonzero()) if rank > margin else 0
    band = flat[flat >= low] if rank <= margin else flat[(flat >= low) & (flat <= high)]
    if above < k <= above + band.numel():
        return _select(band, k - above)
    return _select(flat, k)


def _select(flat: Tensor, k: int) -> Tensor:
    """The same by torch's selection from the nearer end (``kthvalue`` takes quadratic time on sorted scores)."""
    below = flat.numel() - k + 1
    if k <= below:
        return torch.topk(flat, k, sorted=False).values.min()
    return torch.topk(flat, below, largest=False, sorted=False).values.max()


def keep_best(scores: Tensor, need: Tensor, among: Tensor) -> Tensor:
    """Mask of the ``need[i]`` largest ``scores`` among the allowed entries of each row ``i``: :func:`keep_top` by rows.

    Ties go to the lower index, NaN ranks as minus infinity. A few passes over all rows at once.

    Args:
        scores: real, (rows, columns).
        need: integer, (rows,).
        among: bool, (rows, columns).

    Raises:
        ValueError: if a row has fewer allowed entries than it needs.

    Example:
        >>> scores, every = torch.tensor([[1.0, 3.0, 3.0], [5.0, 6.0, 4.0]]), torch.ones(2, 3).bool()
        >>> keep_best(scores, torch.tensor([1, 2]), every).int().tolist()
        [[0, 1, 0], [1, 1, 0]]
    """
    need, available = need.int(), among.sum(1, dtype=torch.int32)  # sums of bools to int64 are eight times slower
    if bool((lacking := need > available).any()):
        row = int(lacking.nonzero()[0])
        raise ValueError(f"cannot keep {int(need[row])} of {int(available[row])} allowed entries in group {row}")
    if need.equal(available):
        return among.clone()
    most = int(need.max())
    if most == 0:
        return torch.zeros_like(among)
    ranked = _ranked(scores, among)
    last = ranked.topk(most, 1).values.gather(1, (need.long() - 1).clamp_(min=0)[:, None])
    threshold = torch.where(need[:, None] > 0, last, torch.inf)
    keep, ties = ranked > threshold, (ranked == threshold) & among
    missing = (need - keep.sum(1, dtype=torch.int32))[:, None]
    if not ties.sum(1, keepdim=True, dtype=torch.int32).equal(missing):
        ties &= ties.cumsum(1, dtype=torch.int32) <= missing
    return keep | ties


def _ranked(scores: Tensor, among: Tensor) -> Tensor:
    """Scores to compare by: minus infinity where NaN or not allowed."""
    real = scores if scores.is_floating_point() else scores.double()
    return torch.where(among, real, -torch.inf).nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def all_bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as integers as wide as ``dtype``: all bits set where it lives, none where it does not.

    Example:
        >>> all_bits(torch.tensor([True, False]), torch.float32).tolist()
        [-1, 0]
    """
    return mask.to(_INTS[dtype.itemsize]).neg_()


def clear(tensors: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    """Set to exactly zero, in place, what the bits leave out, NaN and infinity too.

    "And" on the bits of floats: as fast as a product with floats, ten times faster than one with bools, and unlike
    both it clears what is not finite. Of tensors that are spread over processes, each clears what it holds.

    Example:
        >>> x, mask = torch.tensor([1.5, float("nan")]), torch.tensor([True, False])
        >>> clear([x], [all_bits(mask, x.dtype)])
        >>> x.tolist()
        [1.5, 0.0]
    """
    for tensor, keep in zip(tensors, bits, strict=True):
        local(tensor).detach().view(keep.dtype).bitwise_and_(keep)


def pack_bits(mask: Tensor) -> Tensor:
    """One bit a weight, eight to a byte (``uint8``, on the CPU): what a checkpoint stores.

    Example:
        >>> pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1]).bool()).tolist()
        [129, 1]
    """
    flat = mask.detach().flatten().cpu()
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flat.numel()] = flat
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: torch.Size | list[int]) -> Tensor:
    """The bool mask of ``shape`` that :func:`pack_bits` packed.

    Raises:
        ValueError: if the number of bytes does not fit the shape.

    Example:
        >>> unpack_bits(torch.tensor([129, 1], dtype=torch.uint8), [3, 3]).int().tolist()
        [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    """
    size = torch.Size(shape).numel()
    if bits.numel() != -(-size // 8):
        raise ValueError(f"a mask of shape {list(shape)} needs {-(-size // 8)} bytes, got {bits.numel()}")
    spread = (bits.cpu().view(-1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return spread.flatten()[:size].bool().view(torch.Size(shape))


def positions_bits(size: int, live: int) -> float:
    """Bits that say which weights live when each lives by chance: size times the entropy of the live share.

    Example:
        >>> positions_bits(100, 50), round(positions_bits(100, 10), 2), positions_bits(100, 0)
        (100.0, 46.9, 0.0)
    """
    shares = [count / size for count in (live, size - live) if count]
    return size * sum(-share * math.log2(share) for share in shares) if size else 0.0
