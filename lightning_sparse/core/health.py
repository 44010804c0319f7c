"""What became of the masks: how much they move, explore and starve."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_sparse.core.masks import pack_bits, unpack_bits


class MaskHistory:
    """Follows masks from update to update.

    ``changed`` is the share of live weights that are new since the last update; ``explored`` the share of all weights
    that have ever lived (R_s of Liu et al. 2021, https://arxiv.org/abs/2102.02887); ``overlap`` the share of the first
    mask that is still live; ``dead_inputs`` and ``dead_outputs`` the shares of units without a live weight.

    Example:
        >>> import torch
        >>> history = MaskHistory()
        >>> history.update({"w": torch.tensor([[True, True, False], [False, False, False]])})
        >>> history.update({"w": torch.tensor([[True, False, True], [False, False, False]])})
        >>> history.summary()
        {'changed': 0.5, 'explored': 0.5, 'overlap': 0.5, 'dead_inputs': 0.333..., 'dead_outputs': 0.5}
    """

    def __init__(self) -> None:
        self.now: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self._new = 0

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Take note of new masks; those of layers that are new to it are their first, and nothing of them is new."""
        copies = {name: mask.cpu().clone() for name, mask in masks.items()}  # looked at seldom: not on the device
        self._new = sum(int((mask & ~self.now.get(name, mask)).count_nonzero()) for name, mask in copies.items())
        self.first = {name: self.first.get(name, mask) for name, mask in copies.items()}
        self.seen = {name: mask | self.seen.get(name, mask) for name, mask in copies.items()}
        self.now = copies

    def summary(self) -> dict[str, float]:
        """The five shares, over all layers together."""
        live, size = _total(self.now), sum(mask.numel() for mask in self.now.values())
        kept = _total({name: mask & self.first[name] for name, mask in self.now.items()})
        inputs, outputs = _dead(self.now, 0), _dead(self.now, 1)
        return {
            "changed": self._new / live,
            "explored": _total(self.seen) / size,
            "overlap": kept / _total(self.first),
            "dead_inputs": inputs,
            "dead_outputs": outputs,
        }

    def state_dict(self) -> dict[str, Any]:
        """Bits, for a checkpoint."""
        kinds = {"now": self.now, "first": self.first, "seen": self.seen}
        shapes = {name: list(mask.shape) for name, mask in self.now.items()}
        packed = {kind: {name: pack_bits(mask) for name, mask in masks.items()} for kind, masks in kinds.items()}
        return {"new": self._new, "shapes": shapes, **packed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._new, shapes = state["new"], state["shapes"]
        self.now, self.first, self.seen = (
            {name: unpack_bits(bits, shapes[name]) for name, bits in state[kind].items()}
            for kind in ("now", "first", "seen")
        )


def _total(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.count_nonzero()) for mask in masks.values())


def _dead(masks: Mapping[str, Tensor], over: int) -> float:
    """Share of units (inputs for ``over`` = 0, outputs for 1) whose weights are all dead."""
    alive = [mask.flatten(2).any(2).any(over) if mask.ndim > 2 else mask.any(over) for mask in masks.values()]
    return 1 - sum(int(a.count_nonzero()) for a in alive) / sum(a.numel() for a in alive)
