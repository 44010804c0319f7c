"""Forward FLOPs of a batch by parameter: counted once, then followed as layers lose channels."""

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

from lightning_sparse.core.flops import Costs, FlopCounter
from lightning_sparse.core.param import SparseParam

Params = Mapping[str, SparseParam]


class BatchFlops:
    """Counts on one batch, between ``begin`` and ``end``, with hooks that are gone after it.

    Attributes:
        flops: dense, of a batch, by parameter name; empty where they were not counted.
    """

    def __init__(self) -> None:
        self.flops: Costs = {}
        self._counter: FlopCounter | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counted: Costs | None = None

    def begin(self, pl_module: Any, params: Params) -> None:
        """A batch begins; a compiled model would compile twice for it, and is not counted."""
        self.flops, self._shapes = {}, _shapes(params)
        if not any(hasattr(module, "_orig_mod") for module in pl_module.modules()):
            self._counter = FlopCounter(pl_module)

    def forward_ends(self, params: Params) -> None:
        """What runs from here on does not count: a BNChannelPruner tries the model with fewer channels."""
        if self._counter:
            self._counted, self._shapes = dict(self._counter.flops), _shapes(params)

    def end(self) -> None:
        """The batch is over."""
        if self._counter:
            self.flops = dict(self._counter.flops) if self._counted is None else self._counted
        self.close()

    def follow(self, params: Params) -> None:
        """Channels may have been cut: a layer costs less, exactly as if it had been counted as it is now."""
        now = _shapes(params)
        for name in set(now) & set(self._shapes) & set(self.flops):
            self.flops[name] = float(Fraction(self.flops[name]) * Fraction(prod(now[name]), prod(self._shapes[name])))
        self._shapes = now

    def close(self) -> None:
        """Leave no hook behind."""
        if self._counter:
            self._counter.close()
        self._counter = self._counted = None


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.mask.shape) for name, p in params.items()}
