"""Optimizer state on the mask: any tensor of the weight's shape, whatever the optimizer."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sparse.core.param import SparseParam

# Smallest float32 that stays a normal number through a hundred steps of decay; its root vanishes beside any eps.
_TINY = 1e-36
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


def state_tensors(optimizer: Optimizer, weight: Tensor) -> Iterator[Tensor]:
    """Every floating state tensor that has an entry for each weight (momentum, moments, averages ...)."""
    if weight in optimizer.state:
        for value in optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                yield value


def mask_state(optimizer: Optimizer, weight: Tensor, keep: Tensor) -> None:
    """Zero the state where ``keep`` is False."""
    for value in state_tensors(optimizer, weight):
        value.mul_(keep.to(value.dtype))


class ZeroGuard:
    """Keeps Adam's square root fast on second moments that are exactly zero.

    On a CPU torch takes the root of a contiguous tensor through MKL, which is seven times slower on exact zeros:
    masking 90 % of the gradients doubles the cost of an AdamW step. So dead second moments are 1e-36 while the
    optimizer steps, and zero again after it. Dead weights do not notice (their first moment is zero), live ones
    neither (their second moments are far larger, or their update is decided by eps).
    """

    def __init__(self) -> None:
        self._lifted: list[tuple[Tensor, Tensor]] = []

    def lift(self, optimizer: Optimizer, params: Sequence[SparseParam]) -> None:
        """Before the step: raise second moments off zero."""
        self._lifted = []
        for p in params:
            weight = p.place.weight
            if weight.device.type != "cpu" or weight.dtype != torch.float32 or p.live == p.size:
                continue
            state = optimizer.state.get(weight, {})
            moments = [state[name] for name in _SECOND_MOMENTS if isinstance(state.get(name), Tensor)]
            self._lifted += [(v, p.gate) for v in moments if v.shape == weight.shape]
        if self._lifted:
            torch._foreach_add_([v for v, _ in self._lifted], _TINY)

    def lower(self) -> None:
        """After the step: zero again where dead."""
        if self._lifted:
            torch._foreach_mul_([v for v, _ in self._lifted], [gate for _, gate in self._lifted])
        self._lifted = []
