"""The ranges of activations: they follow what is seen while training, then rest."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparse.core.select import modules_of
from lightning_sparse.core.sharded import is_distributed
from lightning_sparse.quant.places import LookIn, LookOut, Place, Switches
from lightning_sparse.quant.quantization import Layer, Range


class Observers:
    """The places of a model's layers, with hooks on the layers.

    Ranges start as averages over the looks of a calibration and go on as moving averages, ``pace`` at a time; a batch
    with NaN or infinity moves none that it reaches. On several processes the averages over them count.

    Args:
        model: the model.
        layers: by module name.
        bits: of activations; 4 to 8.
        pace: see :class:`Switches`.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], bits: int, pace: float = 0.01) -> None:
        modules = modules_of(model)
        device = next(model.parameters()).device
        self.switches = Switches(device)
        self.switches.pace = pace
        names = [place for layer in layers.values() for place in (layer.input, layer.output) if place is not None]
        self.places = {name: Place(bits, self.switches, device) for name in dict.fromkeys(names)}
        self.odd = torch.zeros((), dtype=torch.long, device=device)  # looks at what is not finite
        self._handles: list[RemovableHandle] = []
        self._last = self._now()
        for name, layer in layers.items():
            module = modules[name]
            if layer.input is not None and layer.input.endswith(":in"):
                hook = LookIn(self.places[layer.input], self.switches, layer.input == f"{name}:in")
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if layer.output is not None:
                leaves = LookOut(self.places[layer.output], self.switches, True, layer.clip)
                ends = modules[layer.norm] if layer.norm is not None else module
                self._handles.append(ends.register_forward_hook(leaves))

    def ranges(self) -> dict[str, Range]:
        """Of the places that have seen something."""
        self.settle()
        ready = {name: place for name, place in self.places.items() if place.ready}
        return {name: Range(float(place.scale), int(place.zero), place.bits) for name, place in ready.items()}

    def open(self, is_open: bool) -> None:
        """Whether forward passes are to see quantized activations."""
        self.switches.open = is_open
        self.switches.simulate.fill_(int(is_open and not self.switches.calibrating))
        self.switches.observe.fill_(int(is_open and self.switches.moving))

    def freeze(self, is_frozen: bool = True) -> None:
        """Whether ranges move no more."""
        self.switches.moving = not is_frozen
        self.settle()
        self.open(self.switches.open)

    @contextmanager
    def calibrating(self) -> Iterator[Callable[[], None]]:
        """Inside, ranges are averages of all looks; call what this gives after each batch."""
        switches, before = self.switches, self.switches.moving
        switches.calibrating = switches.moving = True
        self.open(True)
        try:
            yield self._batch_seen
        finally:
            switches.calibrating, switches.moving = False, before
            self.settle()
            self.open(True)

    @torch.no_grad()
    def step(self) -> None:
        """A batch of training is over: take back what it had of NaN and infinity, and agree with other processes."""
        if not self.places or not self.switches.moving:
            return
        now = self._now()
        fine = (now.isfinite() | (now == self._last)).all(0)
        self.odd += (~fine).sum()
        now = torch.where(fine, now, self._last)
        if is_distributed():
            torch.distributed.all_reduce(now)
            now /= torch.distributed.get_world_size()
        self._take(now)

    def settle(self) -> None:
        """Grids are those of the ranges as they are now."""
        for place in self.places.values():
            if place.ready:
                place.settle()

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Lows and highs of all places, in their order."""
        ready = [place.ready for place in self.places.values()]
        return {"places": list(self.places), "ready": ready, "ranges": self._now(), "moving": self.switches.moving}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: if it is of other places.
        """
        if list(state["places"]) != list(self.places):
            raise ValueError(f"ranges were saved of {list(state['places'])}, and here are {list(self.places)}")
        self._take(state["ranges"].to(self._last))
        for place, ready in zip(self.places.values(), state["ready"], strict=True):
            place.ready = bool(ready)
        self.switches.moving = bool(state["moving"])
        self.settle()
        self.open(self.switches.open)

    @torch.no_grad()
    def _batch_seen(self) -> None:
        """In a calibration a batch that is not finite does not count."""
        now = self._now()
        for i, place in enumerate(self.places.values()):
            fresh = not torch.equal(now[:, i], self._last[:, i])
            if fresh and not bool(now[:, i].isfinite().all()):
                now[:, i] = self._last[:, i]
                place.looks, place.ready = place.looks - 1, bool(self._last[:, i].isfinite().all())
                self.odd += 1
        self._take(now)

    def _now(self) -> Tensor:
        """Lows and highs, float32 of (2, places)."""
        places = self.places.values()
        if not places:
            return torch.zeros(2, 0)
        return torch.stack([torch.cat([p.low for p in places]), torch.cat([p.high for p in places])])

    @torch.no_grad()
    def _take(self, now: Tensor) -> None:
        places = list(self.places.values())
        if places:
            torch._foreach_copy_([p.low for p in places], list(now[0].split_with_sizes([1] * len(places))))
            torch._foreach_copy_([p.high for p in places], list(now[1].split_with_sizes([1] * len(places))))
        self._last = now.clone()
