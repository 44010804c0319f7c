"""Masks that are chosen once, before training."""

from dataclasses import dataclass

from lightning_sparse.core.algorithm import Algorithm


@dataclass(frozen=True)
class Static(Algorithm):
    """A mask drawn once, random or by magnitude, that never moves: the baseline that every method must beat.

    Example:
        >>> Static().due(100)
        False
    """
