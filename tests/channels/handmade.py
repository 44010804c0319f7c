"""Graphs written by hand, so that tests of decisions do not rest on the engine that finds them."""

import torch
from torch import nn

from lightning_sparse.channels.atoms import Atom, Graph, Place
from lightning_sparse.channels.choose import choose
from lightning_sparse.channels.options import Choice


def graph(model: nn.Module, flops: dict[str, float] | None = None, /, **atoms: list[str]) -> Graph:
    """A graph of the model with these atoms, each a list of "tensor:dim" or "tensor:dim:width".

    A channel owns ``width`` positions in a row; dots in the names of atoms are written "__".
    """
    shapes = {name: tuple(t.shape) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    found = []
    for name, places in atoms.items():
        rows = []
        for text in places:
            tensor, dim, *width = text.split(":")
            w = int(width[0]) if width else 1
            rows.append(Place(tensor, int(dim), torch.arange(shapes[tensor][int(dim)]).view(-1, w)))
        found.append(Atom(name.replace("__", "."), tuple(rows), lossy=False))
    return Graph(tuple(found), {}, flops or {}, {}, shapes)


NORM = ("weight", "bias", "running_mean", "running_var")


def normed(layer: str, norm: str, *readers: str) -> list[str]:
    """The places of channels that a layer makes, a BatchNorm scales and others read."""
    return [f"{layer}.weight:0", *(f"{norm}.{name}:0" for name in NORM), *(f"{reader}.weight:1" for reader in readers)]


def alone(*sizes: int) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """Independent axes of these sizes, and the shapes of their tensors: a (a tensor each, 3 to a channel), b, c ..."""
    names = [chr(ord("a") + i) for i in range(len(sizes))]
    shapes = {name: (size, 3) for name, size in zip(names, sizes, strict=True)}
    atoms = tuple(Atom(n, (Place(n, 0, torch.arange(shapes[n][0])[:, None]),), lossy=False) for n in names)
    flops = {name: 6.0 * shape[0] for name, shape in shapes.items()}
    return Graph(atoms, {}, flops, {}, shapes), shapes


def written(tensor, values):
    with torch.no_grad():
        tensor.copy_(torch.tensor(values).view_as(tensor))


def convolutional():
    """Conv, BatchNorm, conv: one axis of three channels."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    return model, graph(model, c=normed("0", "1", "3"))


class Stream(nn.Module):
    """Two branches are added; two layers read the sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)
        self.norm_a, self.norm_b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 4)

    def forward(self, x, gate=1.0):
        y = torch.tanh(self.norm_a(self.a(x)) + self.norm_b(self.b(x))) * gate
        return self.left(y).sum(1, keepdim=True) + self.right(y)


def stream():
    model = Stream()
    places = [*normed("a", "norm_a", "left", "right"), *normed("b", "norm_b"), "a.bias:0", "b.bias:0"]
    return model, graph(model, s=places)


def chosen(values, **settings):
    """Indices that stay, by axis, as lists."""
    found, sizes = alone(*map(len, values))
    named = {name: torch.tensor(v) for name, v in zip(sizes, values, strict=True)}
    return [kept.tolist() for kept in choose(found, named, sizes, Choice(**settings)).values()]
