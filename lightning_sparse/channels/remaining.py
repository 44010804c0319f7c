"""A graph of the channels that are left."""

from math import prod

import torch

from lightning_sparse.channels.atoms import Atom, Graph, Kept, Place, kept_indices


def remaining(graph: Graph, kept: Kept) -> Graph:
    """The graph that the model will have when it is cut so, without cutting it; FLOPs follow the elements of weights.

    Args:
        graph: of the model.
        kept: the channels that stay, by atom.

    Example:
        >>> index = torch.arange(4)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> graph = Graph((atom,), {}, {"1.weight": 16.0}, {}, {"0.weight": (4, 3), "1.weight": (2, 4)})
        >>> left = remaining(graph, {"0": torch.tensor([1, 3])})
        >>> left.shapes["1.weight"], left.flops["1.weight"], left.atoms[0].places[0].index.tolist()
        ((2, 2), 8.0, [[0], [1]])
    """
    cuts = kept_indices(graph, kept)
    shapes = dict(graph.shapes)
    new: dict[tuple[str, int], torch.Tensor] = {}
    for name, dims in cuts.items():
        shape = list(shapes[name])
        for dim, index in dims.items():
            new[name, dim] = torch.full((shape[dim],), -1)
            new[name, dim][index] = torch.arange(len(index))
            shape[dim] = len(index)
        shapes[name] = tuple(shape)
    atoms = []
    for atom in graph.atoms:
        stay = kept.get(atom.name, torch.arange(atom.channels))
        places = tuple(Place(p.name, p.dim, _moved(p, stay, new)) for p in atom.places)
        atoms.append(Atom(atom.name, places, atom.lossy))
    flops = {n: f * prod(shapes[n]) / prod(graph.shapes[n]) if n in cuts else f for n, f in graph.flops.items()}
    return Graph(tuple(atoms), graph.frozen, flops, graph.unknown, shapes)


def _moved(place: Place, stay: torch.Tensor, new: dict[tuple[str, int], torch.Tensor]) -> torch.Tensor:
    rows = place.index[stay]
    where = new.get((place.name, place.dim))
    return rows if where is None else where[rows]
