"""The shape that live weights may take: any, whole blocks, whole channels (n of m and fixed fan-in: grouped.py)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Size, Tensor, nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.select import TRANSPOSED, Target, inputs_first


def outputs_first(tensor: Tensor, module: nn.Module) -> Tensor:
    """A weight of ``module`` with its outputs in dimension 0 and its inputs in dimension 1; its own inverse.

    Only transposed convolutions store it otherwise, as (inputs, outputs / groups, ...), and transformers' Conv1D.

    Example:
        >>> list(outputs_first(torch.zeros(6, 4, 3), nn.ConvTranspose1d(6, 8, 3, groups=2)).shape)
        [8, 3, 3]
    """
    if isinstance(module, TRANSPOSED):
        return tensor.reshape(module.groups, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
    return tensor.t().contiguous() if inputs_first(module) else tensor


def seen(target: Target) -> Size:
    """The shape of a weight with its outputs first, as patterns see it."""
    return outputs_first(torch.empty(target.shape, device="meta"), target.module).shape


_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # what sums are taken in


class Pattern(ABC):
    """The shape that live weights may take in a parameter.

    Tensors come with their outputs in dimension 0, their inputs in dimension 1 and the kernel behind, as Linear,
    convolutions, attention and recurrent layers store them; :class:`SparseParam` turns transposed convolutions. The
    default of every method but :meth:`fill` is that of a pattern that allows any mask.

    Attributes:
        tiled: whether weights live and die in whole units, so that a single one cannot be dropped.
    """

    tiled: ClassVar[bool] = False

    @abstractmethod
    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """``kept`` and the best others, ``k`` in all, so that the pattern holds.

        Ties go to the lower index, NaN ranks as minus infinity, and every rank chooses alike.

        Args:
            kept: bool; what lives whatever its score. What :meth:`shrink` or :meth:`fill` returned always fits.
            scores: real, of the shape of ``kept``; larger is better.
            k: how many live in the end: from :meth:`least` to the size, in multiples of :meth:`unit`.
            among: bool; what may live beside ``kept``.

        Raises:
            ValueError: if no such mask exists.
        """

    def keep(self, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """Mask of the best ``k`` entries that the pattern allows; the contract of :func:`keep_top`.

        Raises:
            ValueError: if the pattern has no mask of ``k`` entries in ``among``.
        """
        return self.fill(torch.zeros_like(among), scores, k, among)

    def shrink(self, scores: Tensor, k: int, among: Tensor, spare: Tensor | None = None) -> Tensor:
        """What lives on through an update that grows next: the best of ``among``, which :meth:`fill` can complete.

        The pattern need not hold in between: groups may be short. Units, where there are any, stay whole.

        Args:
            scores: real; larger is better.
            k: how many to keep. More are kept where fewer could not be completed, or are no whole units.
            among: bool; what lives now, in the pattern.
            spare: bool; what may be grown afterwards. None: anything that does not live then.
        """
        unit = self.unit(among.shape)
        return self.keep(scores, -(-k // unit) * unit, among)

    def holds(self, mask: Tensor) -> bool:
        """Whether the mask has the pattern."""
        return True

    def unit(self, shape: Size) -> int:
        """Counts are planned, and dealt to layers, in multiples of this."""
        return 1

    def least(self, shape: Size) -> int:
        """The smallest count that is planned: no layer dies."""
        return self.unit(shape)

    def whole(self, count: float, shape: Size) -> int:
        """The nearest count that can be planned.

        Example:
            >>> Unstructured().whole(2.6, Size([3, 4])), Block(1, 4).whole(2.6, Size([3, 4]))
            (3, 4)
        """
        unit = self.unit(shape)
        return min(max(round(count / unit) * unit, self.least(shape)), shape.numel() // unit * unit)

    def misfit(self, shape: Size) -> str:
        """Why a weight of that shape cannot have the pattern; empty when it can."""
        return ""

    def fixed_density(self) -> float | None:
        """The only density the pattern can have, or None when it is free."""
        return None


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight may live: the finest pattern, and the most accurate at equal density.

    Example:
        >>> Unstructured().keep(torch.tensor([0.1, 0.9, 0.5]), 1, torch.ones(3).bool()).tolist()
        [False, True, False]
    """

    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """See :meth:`Pattern.fill`."""
        return kept | keep_top(scores, k - int(kept.count_nonzero()), among & ~kept)

    def keep(self, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """See :func:`keep_top`."""
        return keep_top(scores, k, among)

    def shrink(self, scores: Tensor, k: int, among: Tensor, spare: Tensor | None = None) -> Tensor:
        """See :func:`keep_top`."""
        return keep_top(scores, k, among)


class _Tiled(Pattern):
    """Whole tiles live or die together: a tile is worth the sum of its scores."""

    tiled: ClassVar[bool] = True

    @abstractmethod
    def tiles(self, shape: Size) -> tuple[int, int, int, int, int]:
        """The weight's shape as (tiles down, rows, tiles across, columns, kernel); a tile is rows x columns."""

    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """See :meth:`Pattern.fill`: a tile may live only where all of it is in ``among``."""
        shape, unit = self.tiles(kept.shape), self.unit(kept.shape)
        more = k - int(kept.count_nonzero())
        if more % unit:
            raise ValueError(f"{self} keeps whole units of {unit} weights here, {k} are none; round to its unit()")
        worth = scores.reshape(shape).sum((1, 3), dtype=_WIDE.get(scores.dtype))
        allowed = (among & ~kept).reshape(shape).all(3).all(1)
        chosen = keep_top(worth, more // unit, allowed)[:, None, :, None, :]
        return kept | chosen.expand(shape).reshape(kept.shape)

    def holds(self, mask: Tensor) -> bool:
        """Whether each tile lives or dies as one."""
        tiles = mask.reshape(self.tiles(mask.shape))
        return bool((tiles.all(3).all(1) == tiles.any(3).any(1)).all())

    def unit(self, shape: Size) -> int:
        """The weights of a tile."""
        _, rows, _, columns, _ = self.tiles(shape)
        return rows * columns


@dataclass(frozen=True)
class Block(_Tiled):
    """Tiles of ``rows`` outputs by ``columns`` inputs live or die together: what block-sparse kernels need.

    A convolution has such tiles at each kernel position: its weight as a matrix in channels-last order, (outputs,
    kernel * inputs). A tile is worth the sum of its scores: its L1 norm, where magnitudes are ranked. A layer that is
    not made of whole tiles stays dense, with a warning. Source: Narang et al. 2017, https://arxiv.org/abs/1711.02782
    (who rank by the largest weight of a block).

    Args:
        rows: outputs in a tile.
        columns: inputs in a tile.

    Raises:
        ValueError: on numbers that make no tile.

    Example:
        >>> scores = torch.tensor([[9.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
        >>> Block(2, 2).keep(scores, 4, torch.ones(2, 4).bool()).int().tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        sides = {"rows": self.rows, "columns": self.columns}
        wrong = [f"{name} must be an int from 1, got {n!r}" for name, n in sides.items() if type(n) is not int or n < 1]
        raise_problems(wrong, "Block")

    def tiles(self, shape: Size) -> tuple[int, int, int, int, int]:
        """See :class:`Block`."""
        return shape[0] // self.rows, self.rows, shape[1] // self.columns, self.columns, shape[2:].numel()

    def misfit(self, shape: Size) -> str:
        """The matrix must be made of whole tiles."""
        if shape[0] % self.rows == 0 == shape[1] % self.columns:
            return ""
        return f"{shape[0]} x {shape[1]} is not made of whole {self.rows} x {self.columns} blocks"


@dataclass(frozen=True)
class Channel(_Tiled):
    """Whole outputs live or die: neurons, filters, with all the weights they read.

    An output is worth the sum of its scores: its L1 norm, where magnitudes are ranked. Nothing is cut out: shapes,
    biases and norms stay, so a dead channel still gives its bias. At least one channel of each layer lives. Source:
    Li et al. 2017, https://arxiv.org/abs/1608.08710, section 3.1.

    Example:
        >>> Channel().keep(torch.tensor([[1.0, 1.0], [0.0, 3.0]]), 2, torch.ones(2, 2).bool()).int().tolist()
        [[0, 0], [1, 1]]
    """

    def tiles(self, shape: Size) -> tuple[int, int, int, int, int]:
        """See :class:`Channel`."""
        return shape[0], 1, 1, shape[1:].numel(), 1
