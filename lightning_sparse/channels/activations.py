"""Mean and variance of what layers are given, gathered while batches go by."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.parts import Layout, Slot
from lightning_sparse.core.select import CONVS, TRANSPOSED
from lightning_sparse.core.sharded import is_distributed

_GIVEN = ("query", "key", "value")  # of attention


class Moments:
    """Count, mean and summed squares of deviations of each feature, merged batch by batch.

    The merge of Chan, Golub & LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115: no large sums of squares
    are subtracted from each other.

    Attributes:
        count: float32 scalar tensor: values seen of each feature.
        mean: float32 [features].
        squares: float32 [features].

    Example:
        >>> moments = Moments(torch.tensor([[1.0], [3.0]]))
        >>> moments.merge(Moments(torch.tensor([[5.0], [7.0]])))
        >>> moments.mean.tolist(), moments.variance().tolist()
        ([4.0], [5.0])
    """

    def __init__(self, values: Tensor) -> None:
        """Of values [count, features]."""
        values = values.float()
        self.count = torch.tensor(float(len(values)), device=values.device)
        self.mean = values.mean(0)
        self.squares = (values - self.mean).square().sum(0)

    def merge(self, other: "Moments") -> None:
        """Take in another set of values."""
        total = self.count + other.count
        gap, share = other.mean - self.mean, other.count / total.clamp_min(1)
        self.mean = self.mean + gap * share
        self.squares = self.squares + other.squares + gap.square() * self.count * share
        self.count = total

    def variance(self) -> Tensor:
        """Over all values seen (not the sample's estimate): float32 [features]."""
        return self.squares / self.count.clamp_min(1)

    def agree(self) -> None:
        """Merge over all ranks, where there are several; all must ask."""
        if not is_distributed():
            return
        count, mean = self.count.clone(), self.mean * self.count
        for value in (count, mean):
            torch.distributed.all_reduce(value)
        mean = mean / count.clamp_min(1)
        squares = self.squares + self.count * (self.mean - mean).square()
        torch.distributed.all_reduce(squares)
        self.count, self.mean, self.squares = count, mean, squares


class InputMoments:
    """Watches what the layers that read prunable channels are given, while it is open.

    Values of the batch and of places (pixels, tokens) count alike. What is gathered stays when it is closed.

    Args:
        layout: where the channels lie.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom, Graph, Place
        >>> from lightning_sparse.channels.parts import layout
        >>> model, index = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), torch.arange(2)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> graph = Graph((atom,), {}, {}, {}, {"0.weight": (2, 1), "1.weight": (1, 2)})
        >>> with InputMoments(layout(model, graph)) as watched:
        ...     _ = model[1](torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> watched.of(model[1]).mean.tolist()
        [2.0, 2.0]
    """

    def __init__(self, layout: Layout) -> None:
        slots = [slot for found in layout.values() for slot in found if slot.role == "in"]
        self.readers = list(dict.fromkeys(slot.module for slot in slots))
        self._sizes = {id(slot.module): inputs_of(slot) for slot in slots}
        self._found: dict[int, Moments] = {}
        self._handles: list[Any] = []

    def open(self) -> None:
        """Begin to watch."""
        if not self._handles:
            self._handles = [m.register_forward_pre_hook(self._look, with_kwargs=True) for m in self.readers]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "InputMoments":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for given in given_to(module, args, kwargs):
            values = given.detach().movedim(channel_axis(module, given), -1)
            if not values.numel() or values.shape[-1] != self._sizes[id(module)]:
                continue  # a layer of somebody's own may be given its channels in another dimension
            seen = Moments(values.reshape(-1, values.shape[-1]))
            if id(module) in self._found:
                self._found[id(module)].merge(seen)
            else:
                self._found[id(module)] = seen

    def agree(self) -> None:
        """Merge over all ranks, where there are several; they must have called the same layers."""
        for module in self.readers:
            if id(module) in self._found:
                self._found[id(module)].agree()

    def of(self, module: nn.Module) -> Moments | None:
        """What a layer was given; None if it was never called."""
        return self._found.get(id(module))

    def at(self, slot: Slot) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of the channels of a slot that reads, [channels, entries] each; None if it never did."""
        found = self.of(slot.module)
        if slot.role != "in" or found is None:
            return None
        index = features(slot).to(found.mean.device)
        return found.mean[index], found.variance()[index]


def features(slot: Slot) -> Tensor:
    """Which features of a layer's input belong to each channel: int64 [channels, entries].

    A grouped convolution has weights for one group's inputs only: what is cut there is cut in every group.
    """
    index, module = slot.place.index, slot.module
    if not isinstance(module, CONVS) or module.groups == 1:
        return index
    width = module.in_channels // module.groups
    return torch.cat([index + group * width for group in range(module.groups)], 1)


def inputs_of(slot: Slot) -> int:
    """How many features a layer is given, by the weight that reads them."""
    groups = slot.module.groups if isinstance(slot.module, CONVS) else 1
    return slot.tensor.shape[slot.place.dim] * groups


def channel_axis(module: nn.Module, given: Tensor) -> int:
    """The dimension of an input that holds the channels."""
    return given.ndim - 1 - len(module.kernel_size) if isinstance(module, CONVS + TRANSPOSED) else given.ndim - 1


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterable[Tensor]:
    """The inputs that a layer's weights meet, each once."""
    if isinstance(module, nn.MultiheadAttention):
        named = {**dict(zip(_GIVEN, args, strict=False)), **kwargs}
        return {id(named[name]): named[name] for name in _GIVEN if name in named}.values()
    return [value for value in [*args[:1], *kwargs.values()][:1] if isinstance(value, Tensor)]
