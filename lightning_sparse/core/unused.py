"""Sparse parameters that training does not use hold a share of the live weights for nothing."""

import warnings
from collections.abc import Sequence

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.param import SparseParam

_LEAST, _FAR = 25, 1000  # optimizer steps


class Unused:
    """Warns, once for each, of parameters that get no gradient until the first update, and for 25 steps at least.

    One gradient in all that time is enough: layers may be skipped by chance, or take turns. Steps while a parameter is
    frozen do not count.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()  # had a gradient, or was told of
        self._without: dict[str, int] = {}  # steps
        self._window = 0

    def look(self, params: Sequence[SparseParam]) -> None:
        """Gradients are there; any number of times a step."""
        if len(self._known) < len(params):
            self._known.update(p.name for p in params if p.place.weight.grad is not None)

    def count(self, params: Sequence[SparseParam], algorithm: Algorithm, step: int) -> None:
        """Optimizer step ``step`` has happened."""
        if len(self._known) >= len(params):
            return
        self._window = self._window or max(_LEAST, _first_update(algorithm, step))
        idle = [p for p in params if p.name not in self._known and p.place.weight.requires_grad]
        self._without |= {p.name: self._without.get(p.name, 0) + 1 for p in idle}
        if late := [p for p in idle if self._without[p.name] >= self._window]:
            self._known.update(p.name for p in late)
            self._warn(late, params)

    def _warn(self, late: Sequence[SparseParam], params: Sequence[SparseParam]) -> None:
        names, live, of = [p.name for p in late], sum(p.live for p in late), sum(p.live for p in params)
        warnings.warn(
            f"no gradient came for {', '.join(names)} in {self._window} optimizer steps: does training use them? They "
            f"hold {live:,} of {of:,} live weights; exclude={names} leaves them out of the count",
            stacklevel=2,
        )


def _first_update(algorithm: Algorithm, step: int) -> int:
    """Steps from ``step`` to the next update, both counted; 0 where none comes soon."""
    return next((n for n in range(1, _FAR + 1) if algorithm.due(step + n - 1)), 0)
