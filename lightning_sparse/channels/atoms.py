"""What can be cut: channel axes, each with all the tensors that share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Kept = Mapping[str, Tensor]  # name of an atom -> int64 indices of its channels that stay, ascending


@dataclass(frozen=True)
class Place:
    """Where the channels of an atom lie in one dimension of one tensor.

    Attributes:
        name: of the parameter or buffer, without what wrappers put in.
        dim: of that tensor.
        index: int64 [channels, width] on the CPU; row i lists the positions along ``dim`` that channel i owns.
    """

    name: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Atom:
    """One prunable channel axis, across all tensors that share it.

    Attributes:
        name: of the first layer that produces it; unique in its graph.
        places: all dimensions that lose something when a channel goes.
        lossy: removing a channel is no identity even when it is zero everywhere, for statistics over the axis change.
    """

    name: str
    places: tuple[Place, ...]
    lossy: bool

    @property
    def channels(self) -> int:
        """How many can be removed or kept."""
        return int(self.places[0].index.shape[0])


@dataclass(frozen=True)
class Graph:
    """What was found out about a model in one run of it.

    Attributes:
        atoms: what can be cut, in the order of the model.
        frozen: why an axis cannot be cut, by "tensor name:dimension".
        flops: dense forward FLOPs of one run, by parameter; 2 per multiply-add.
        unknown: how often operations without a rule were met.
        shapes: of every parameter and buffer at the time; a graph is stale once a tensor has another shape.
        widths: of modules without tensors that know how many channels they get (``num_features``): which tensor's
            dimension it is.
        others: what could be cut instead where a dimension of channels is split (whole heads), by policy; to be probed.
    """

    atoms: tuple[Atom, ...]
    frozen: Mapping[str, str]
    flops: Mapping[str, float]
    unknown: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    others: Mapping[str, tuple[Atom, ...]] = field(default_factory=dict)
    widths: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def kept_indices(graph: Graph, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """The indices that stay, by tensor and dimension; tensors that lose nothing are missing.

    Args:
        graph: of :func:`~lightning_sparse.channels.trace.analyse`.
        kept: the channels that stay, by atom; atoms that are missing stay whole.

    Raises:
        ValueError: on an atom that the graph does not have, or indices that are no channels of it.

    Example:
        >>> atom = Atom("0", (Place("0.weight", 0, torch.arange(4)[:, None]),
        ...                   Place("1.weight", 1, torch.arange(8).view(4, 2))), lossy=False)
        >>> graph = Graph((atom,), {}, {}, {}, {"0.weight": (4, 3), "1.weight": (2, 8)})
        >>> kept_indices(graph, {"0": torch.tensor([0, 2])})
        {'0.weight': {0: tensor([0, 2])}, '1.weight': {1: tensor([0, 1, 4, 5])}}
    """
    stays: dict[tuple[str, int], Tensor] = {}
    atoms = {atom.name: atom for atom in graph.atoms}
    for name, channels in kept.items():
        if name not in atoms:
            raise ValueError(f"no atom is named {name!r}; there are: {', '.join(atoms) or 'none'}")
        atom = atoms[name]
        channels = channels.to("cpu", torch.int64)
        gone = torch.ones(atom.channels, dtype=torch.bool)
        if channels.numel() == 0 or int(channels.min()) < 0 or int(channels.max()) >= atom.channels:
            raise ValueError(f"{name} has channels 0 ... {atom.channels - 1}, asked to keep {channels.tolist()}")
        gone[channels] = False
        if not bool(gone.any()):
            continue
        for place in atom.places:
            size = graph.shapes[place.name][place.dim]
            mask = stays.setdefault((place.name, place.dim), torch.ones(size, dtype=torch.bool))
            mask[place.index[gone].flatten()] = False
    found: dict[str, dict[int, Tensor]] = {}
    for (name, dim), mask in stays.items():
        found.setdefault(name, {})[dim] = mask.nonzero().flatten()
    return found
