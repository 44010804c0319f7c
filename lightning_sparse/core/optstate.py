"""Optimizer state on the mask: any tensor of the weight's shape, whatever the optimizer."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_sparse.core.compact import followed
from lightning_sparse.core.masks import all_bits, clear
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.sharded import local, shard_like

# Small, and still a normal float32 number after a hundred steps of decay; its root vanishes beside any eps.
_TINY = 1e-36
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
_STAYS_ZERO = (SGD, Adam, AdamW, RMSprop)  # zero state stays zero under a zero gradient


def state_tensors(optimizer: Optimizer, weight: Tensor) -> Iterator[Tensor]:
    """Every floating state tensor that has an entry for each weight (momentum, moments, averages ...)."""
    if weight in optimizer.state:
        for value in optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                yield value


def mask_state(optimizer: Optimizer, weight: Tensor, keep: Tensor) -> None:
    """Zero the state where ``keep`` is False."""
    for value in state_tensors(optimizer, weight):
        clear([value], [all_bits(shard_like(keep, value), value.dtype)])


def carry_state(optimizer: Optimizer, p: SparseParam, survivors: Tensor) -> None:
    """After masks moved: state of what stayed live is kept, all other is zero.

    An optimizer that stores live entries only (``lightning_sparse.optim``) does so itself when it is told the mask.
    """
    if p.compact is not None:
        return  # see move_state
    mask_state(optimizer, p.place.weight, survivors)
    tell_mask(optimizer, p)


def meet_state(optimizer: Optimizer, p: SparseParam) -> None:
    """An optimizer is about to be followed: zero the state of dead weights, where it is not zero already."""
    if p.compact is not None:
        return
    for value in state_tensors(optimizer, p.place.weight):
        _clear_wrong(value, shard_like(p.mask, value))
    tell_mask(optimizer, p)


def move_state(optimizer: Optimizer, weight: Tensor, before: int, source: Tensor) -> None:
    """After the values of a layer without zeros moved: their state follows them, that of new ones is zero.

    Args:
        optimizer: that steps them.
        weight: the values.
        before: how many there were.
        source: for each value the index of the former one, or -1.
    """
    row = optimizer.state.get(weight, {})
    for key, value in row.items():
        if isinstance(value, Tensor) and value.shape == (before,) and value.is_floating_point():
            moved = followed(value, source)
            row[key] = value.copy_(moved) if moved.shape == value.shape else moved


def _clear_wrong(value: Tensor, keep: Tensor) -> None:
    """Zero what is dead and not zero. A -0.0 stays: else a resumed run is not bit for bit the one without a break."""
    held = local(value).detach()
    held.masked_fill_(~keep & (held != 0), 0.0)


def tell_mask(optimizer: Optimizer, p: SparseParam) -> None:
    """Tell an optimizer that works on live weights only which these are."""
    set_mask = getattr(optimizer, "set_mask", None)
    if set_mask is not None:
        set_mask(p.place.weight, p.mask if p.latent is None else torch.ones_like(p.mask))


def sweep(optimizer: Optimizer, params: Sequence[SparseParam]) -> None:
    """Zero dead state after a step of an optimizer that may fill it whatever the gradient (eps, first step sizes)."""
    if sweeps(optimizer):
        for p in (p for p in params if p.compact is None):
            mask_state(optimizer, p.place.weight, p.mask)


def sweeps(optimizer: Optimizer) -> bool:
    """Whether a step may fill state that was zero though the gradient is zero.

    Example:
        >>> sweeps(torch.optim.SGD([torch.zeros(1)], lr=0.1)), sweeps(torch.optim.Rprop([torch.zeros(1)]))
        (False, True)
    """
    return type(optimizer) not in _STAYS_ZERO


def mask_history(optimizer: Optimizer, params: Sequence[SparseParam]) -> None:
    """Zero what is dead in LBFGS' history of flat steps and gradients; nothing for others."""
    if not isinstance(optimizer, LBFGS):
        return
    masks = {id(p.place.weight): p.mask.flatten() for p in params if p.compact is None}
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    flat = torch.cat([masks.get(id(w), torch.ones(w.numel(), dtype=torch.bool, device=w.device)) for w in weights])
    for state in optimizer.state.values():
        for value in state.values():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, Tensor) and part.shape == flat.shape:
                    _clear_wrong(part, flat)


def forget(optimizer: Optimizer) -> None:
    """Drop LBFGS' history, which is of other masks; nothing for others."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None  # of a parameter that may have another size now


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
            held = p.compact is None and p.live < p.size
            if weight.device.type != "cpu" or weight.dtype != torch.float32 or not held:
                continue
            state = optimizer.state.get(weight, {})
            moments = [state[name] for name in _SECOND_MOMENTS if isinstance(state.get(name), Tensor)]
            fitting = [v for v in moments if v.shape == weight.shape and v.dtype == weight.dtype]
            self._lifted += [(local(v), p.bits) for v in fitting]
        if self._lifted:
            torch._foreach_add_([v for v, _ in self._lifted], _TINY)

    def lower(self) -> None:
        """After the step: zero again where dead."""
        clear([v for v, _ in self._lifted], [bits for _, bits in self._lifted])
        self._lifted = []
