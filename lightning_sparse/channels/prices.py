"""What a model costs with fewer channels, without cutting it."""

from collections.abc import Mapping, Sequence

from lightning_sparse.channels.atoms import Graph

Counts = Mapping[str, int]  # channels that stay, by atom; atoms that are missing stay whole


class Prices:
    """Parameters and FLOPs of a model, as functions of how many channels of each axis stay.

    The elements of a tensor are the product of what is left of its dimensions. FLOPs follow the elements of the weight,
    which is exact for Linear, convolutions and attention's projections.

    Args:
        graph: of the model.
        sizes: shapes of its parameters; tied ones once.

    Example:
        >>> import torch
        >>> from lightning_sparse.channels.atoms import Atom, Place
        >>> index = torch.arange(4)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> sizes = {"0.weight": (4, 3), "1.weight": (2, 4)}
        >>> prices = Prices(Graph((atom,), {}, {"0.weight": 24.0, "1.weight": 16.0}, {}, sizes), sizes)
        >>> prices.params({}), prices.params({"0": 1}), prices.flops({"0": 1})
        (20, 5, 10.0)
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, Sequence[int]]) -> None:
        self.sizes = {name: tuple(shape) for name, shape in sizes.items()}
        self.channels = {atom.name: atom.channels for atom in graph.atoms}
        self._flops = dict(graph.flops)
        self._owned: dict[str, list[tuple[int, str, int]]] = {}  # dimension, atom, elements a channel
        for atom in graph.atoms:
            for place in atom.places:
                if place.name in self.sizes:
                    row = (place.dim, atom.name, int(place.index.shape[1]))
                    self._owned.setdefault(place.name, []).append(row)
        self._fixed_params = sum(self.params_of(name, {}) for name in self.sizes if name not in self._owned)
        self._fixed_flops = sum(flops for name, flops in self._flops.items() if name not in self._owned)

    def shape(self, name: str, counts: Counts) -> tuple[int, ...]:
        """Of a parameter, when so many channels stay."""
        left = list(self.sizes[name])
        for dim, atom, width in self._owned.get(name, ()):
            left[dim] -= width * (self.channels[atom] - counts.get(atom, self.channels[atom]))
        return tuple(left)

    def params(self, counts: Counts) -> int:
        """Parameters of the whole model."""
        return self._fixed_params + sum(self.params_of(name, counts) for name in self._owned)

    def flops(self, counts: Counts) -> float:
        """Forward FLOPs of the whole model, of one run like the one that was traced."""
        return self._fixed_flops + sum(self.flops_of(name, counts) for name in self._owned)

    def params_of(self, name: str, counts: Counts) -> int:
        """Elements of one parameter."""
        elements = 1
        for size in self.shape(name, counts):
            elements *= size
        return elements

    def flops_of(self, name: str, counts: Counts) -> float:
        """Forward FLOPs of one parameter; 0 for one that multiplies nothing."""
        dense = self._flops.get(name, 0.0)
        if name not in self._owned or not dense:
            return dense
        return dense * self.params_of(name, counts) / self.params_of(name, {})
