"""The tensors of a prunable axis, and what each of them does with its channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Graph, Place
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import TRANSPOSED, clean, inputs_first, matches

Role = Literal["out", "in", "norm", "bias", "other"]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_PARAMETRIZED = ".parametrizations."


@dataclass(frozen=True)
class Part:
    """One tensor of one prunable axis, as a criterion sees it; rows are channels.

    Attributes:
        atom: name of the axis.
        name: of the tensor.
        module: that owns it.
        attribute: what the tensor is called there: "weight", "bias", "running_var" ...
        role: "out" a weight that produces the channels, "in" one that reads them, "norm" anything of a normalisation,
            "bias" a bias, "other" the rest (learned scales, positions, tables).
        dim: of the tensor, along which the channels lie.
        index: int64 [channels, width]: where.
        rows: [channels, width, the other dimensions ...]: what belongs to each channel.
        grad: of the same shape; None when there is none, or the criterion did not ask.
        mean: float32 [channels, entries]: of what arrives, where ``role`` is "in" and activations are asked for.
        variance: likewise.
    """

    atom: str
    name: str
    module: nn.Module
    attribute: str
    role: Role
    dim: int
    index: Tensor
    rows: Tensor
    grad: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None

    def beside(self, attribute: str) -> Tensor | None:
        """Another tensor of the module for the same channels, such as a BatchNorm's "running_var"; None if it has none.

        It must be laid out alike.
        """
        tensor = getattr(self.module, attribute, None)
        return rows_of(tensor.detach(), self.dim, self.index) if isinstance(tensor, Tensor) else None


@dataclass(frozen=True)
class Slot:
    """A :class:`Part` without its values: they are looked up when they are needed."""

    atom: str
    place: Place
    module: nn.Module
    attribute: str
    role: Role
    holder: nn.Module  # differs from the module where a parametrization holds the tensor
    key: str

    @property
    def tensor(self) -> Tensor:
        """The tensor as it is now."""
        tensor: Tensor = getattr(self.holder, self.key)
        return tensor

    def part(self, grad: Tensor | None = None, moments: tuple[Tensor, Tensor] | None = None) -> Part:
        """With the present values.

        Args:
            grad: of the whole tensor.
            moments: mean and variance, [channels, entries] each.
        """
        place = self.place
        mean, variance = moments or (None, None)
        grad = grad.to_dense() if grad is not None and grad.is_sparse else grad  # of an embedding with sparse=True
        return Part(
            atom=self.atom,
            name=place.name,
            module=self.module,
            attribute=self.attribute,
            role=self.role,
            dim=place.dim,
            index=place.index,
            rows=rows_of(self.tensor.detach(), place.dim, place.index),
            grad=None if grad is None else rows_of(grad, place.dim, place.index),
            mean=mean,
            variance=variance,
        )


Layout = dict[str, tuple[Slot, ...]]  # by atom


def rows_of(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """The entries of each channel: [channels, width, the other dimensions ...]; a view where one will do.

    Example:
        >>> rows_of(torch.arange(6.0).view(2, 3), 1, torch.tensor([[0, 2], [1, 1]])).tolist()
        [[[0.0, 3.0], [2.0, 5.0]], [[1.0, 4.0], [1.0, 4.0]]]
    """
    if index.shape[1] == 1 and torch.equal(index[:, 0], torch.arange(tensor.shape[dim])):
        return tensor.movedim(dim, 0).unsqueeze(1)
    picked = tensor.index_select(dim, index.flatten().to(tensor.device)).movedim(dim, 0)
    return picked.reshape(*index.shape, *picked.shape[1:])


def layout(model: nn.Module, graph: Graph) -> Layout:
    """Where the tensors of each atom live in the model's modules.

    Raises:
        ValueError: if the graph is of another model, or of another shape of it.
    """
    owners = _owners(model)
    problems: list[str] = []
    found: Layout = {}
    for atom in graph.atoms:
        slots = []
        for place in atom.places:
            if place.name not in owners:
                problems.append(f"the model has no tensor {place.name}")
                continue
            slot = _slot(atom.name, place, *owners[place.name])
            if tuple(slot.tensor.shape) != tuple(graph.shapes[place.name]):
                problems.append(f"{place.name} is {tuple(slot.tensor.shape)}, was {tuple(graph.shapes[place.name])}")
            slots.append(slot)
        found[atom.name] = tuple(slots)
    raise_problems(problems, "the graph is not of this model as it is now; analyse it again")
    return found


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, str, nn.Module, str]]:
    """Module, attribute there, holder and key there, by the name of the tensor."""
    modules = {clean(name): module for name, module in model.named_modules(remove_duplicate=False)}
    found: dict[str, tuple[nn.Module, str, nn.Module, str]] = {}
    for name, holder in modules.items():
        module, _, attribute = name.partition(_PARAMETRIZED)
        owner = modules[module] if attribute else holder
        for key in (*holder._parameters, *holder._buffers):
            found.setdefault(f"{name}.{key}" if name else key, (owner, attribute or key, holder, key))
    return found


def _slot(atom: str, place: Place, module: nn.Module, attribute: str, holder: nn.Module, key: str) -> Slot:
    tensor = getattr(holder, key)
    return Slot(atom, place, module, attribute, _role(module, attribute, tensor, place.dim), holder, key)


def _role(module: nn.Module, attribute: str, tensor: Tensor, dim: int) -> Role:
    if isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and tensor.ndim == 1):
        return "norm"
    if "bias" in attribute:
        return "bias"
    if tensor.ndim < 2 or "weight" not in attribute or not isinstance(tensor, nn.Parameter):
        return "other"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "out" if dim == 1 else "other"
    if dim > 1:
        return "other"
    depthwise = isinstance(module, TRANSPOSED) and module.groups == module.in_channels > 1  # reads and writes in dim 0
    return "out" if depthwise or (dim == 1) == inputs_first(module) else "in"


def excluded(model: nn.Module, graph: Graph, globs: Sequence[str]) -> dict[str, str]:
    """The atoms that a user wants whole, with the glob that says so.

    A glob that fits a layer or a parameter keeps the channels that it produces; what it reads may still become less.

    Raises:
        ValueError: if a glob fits no parameter.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom
        >>> index = torch.arange(4)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> graph = Graph((atom,), {}, {}, {}, {"0.weight": (4, 3), "1.weight": (2, 4)})
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> excluded(model, graph, ["0"]), excluded(model, graph, ["1"])
        ({'0': 'excluded by name'}, {})
    """
    names = [_plain(clean(name)) for name, _ in model.named_parameters()]
    lost = [glob for glob in globs if not any(matches(name, [glob]) for name in names)]
    raise_problems([f"{lost} matches no parameter; candidates: {', '.join(names)}"] if lost else [], "exclude")
    produced = {
        atom: [_plain(slot.place.name) for slot in slots if slot.role != "in"]
        for atom, slots in layout(model, graph).items()
    }
    return {atom: "excluded by name" for atom, own in produced.items() if any(matches(name, globs) for name in own)}


def _plain(name: str) -> str:
    """The name that a parameter had before it was parametrized."""
    module, _, attribute = name.partition(_PARAMETRIZED)
    return f"{module}.{attribute.partition('.')[0]}" if attribute else name


def parameter_shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Shapes by name; tied parameters once.

    Example:
        >>> parameter_shapes(nn.Linear(3, 2))
        {'weight': (2, 3), 'bias': (2,)}
    """
    return {clean(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
