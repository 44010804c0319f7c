"""Fake quantization of a model while any loop trains it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_sparse.quant.observers import Observers
from lightning_sparse.quant.quantization import Layer, Quantization
from lightning_sparse.quant.weights import ShownWeights, is_compiled


class Quantizer:
    """What a model computes is what its integers would compute: weights and activations are on their grids.

    No module is renamed or wrapped: weights are put on their grid in place before a forward pass, and their float
    values come back before the optimizer steps them. ``state_dict`` and copies have floats. No Lightning is needed.
    Zeros stay where a :class:`Sparsifier` keeps them; see :func:`keep_zeros` for a model that has none.

    Args:
        model: any module.
        layers: from :func:`find`.
        optimizers: those to attach at once.
        act_bits: of activations, 4 to 8; None leaves them in float.
        pace: how far one training batch moves the range of an activation.
        left: weights that stay in float, with the reason; told in :attr:`quantization`.

    Example:
        >>> from lightning_sparse.quant.sites import find
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
        >>> quantizer = Quantizer(net, find(net, lambda: net(x), {"0": 4, "2": 4}))
        >>> quantizer.calibrate([lambda: net(x)])
        1
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> quantizer.attach(optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(x).square().mean().backward()
        ...     _ = optimizer.step()
        >>> _ = net(x)
        >>> net[0].weight.unique().numel() <= 8 * 16, sorted(quantizer.quantization.ranges)
        (True, ['0:in', '2:in'])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        *,
        optimizers: Iterable[Any] = (),
        act_bits: int | None = 8,
        pace: float = 0.01,
        left: Mapping[str, str] | None = None,
    ) -> None:
        self.layers, self.left = dict(layers), dict(left or {})
        if act_bits is None:
            self.layers = {name: replace(layer, input=None, output=None) for name, layer in layers.items()}
        self._weights = ShownWeights(model, self.layers)
        self._observers = Observers(model, self.layers, act_bits or 8, pace)
        self._compiled = any(is_compiled(module) for module in model.modules())
        self._hooks_changed()
        for optimizer in optimizers:
            self.attach(optimizer)

    @property
    def quantization(self) -> Quantization:
        """Layers, ranges as they are now, and what stays in float; plain data."""
        ranges = self._observers.ranges()

        def known(place: str | None) -> str | None:
            return place if place in ranges else None

        layers = {n: replace(x, input=known(x.input), output=known(x.output)) for n, x in self.layers.items()}
        return Quantization(layers, ranges, self.left)

    def unseen(self) -> list[str]:
        """Places that no batch has reached: they stay in float."""
        return [name for name, place in self._observers.places.items() if not place.ready]

    @property
    def odd(self) -> int:
        """How many looks at activations found NaN or infinity."""
        return int(self._observers.odd)

    @property
    def frozen(self) -> bool:
        """Whether ranges move no more."""
        return not self._observers.switches.moving

    def attach(self, optimizer: Any) -> None:
        """See to it that this optimizer steps floats. Attaching twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
        """
        self._weights.attach(optimizer)

    def calibrate(self, runs: Iterable[Callable[[], Any]]) -> int:
        """Run the model on some batches: ranges become averages of what is seen. Returns how many ran."""
        count = 0
        self._weights.reach()
        with torch.no_grad(), self._observers.calibrating() as seen:
            for run in runs:
                run()
                seen()
                count += 1
        self._weights.reach()
        return count

    def show(self) -> None:
        """Put all weights on their grids now; forward passes do so by themselves, but not inside compiled code."""
        self._weights.show()

    def step(self) -> None:
        """A training batch is over: ranges forget its NaN and infinity, and agree with those of other processes."""
        self._observers.step()

    def freeze(self, is_frozen: bool = True) -> None:
        """Whether ranges move no more."""
        self._observers.freeze(is_frozen)

    def open(self) -> None:
        """From now on forward passes compute what the integers would."""
        self._weights.open = True
        self._weights.reach()
        self._observers.open(True)

    def close(self) -> None:
        """From now on they compute with floats, which all weights show."""
        self._weights.restore()
        self._weights.open = False
        self._observers.open(False)

    def restore(self, optimizer: Any = None) -> None:
        """Weights (those that ``optimizer`` steps, or all) show floats until the next forward pass."""
        self._weights.restore(optimizer)

    @contextmanager
    def floats(self) -> Iterator[None]:
        """Inside, the model is the float one."""
        before = self._weights.open
        self.close()
        try:
            yield
        finally:
            if before:
                self.open()

    def detach(self) -> None:
        """Let go of model and optimizers; the model is the float one."""
        self._weights.detach()
        self._observers.remove()
        self._hooks_changed()

    def state_dict(self) -> dict[str, Any]:
        """What is not in the model: ranges, and whether they still move."""
        return self._observers.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: if it is of other places.
        """
        self._observers.load_state_dict(state)

    def _hooks_changed(self) -> None:
        """Code that torch has compiled does not notice hooks that come later: it is compiled again."""
        if self._compiled and self._observers.places:
            torch.compiler.reset()
