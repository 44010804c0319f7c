"""What has been cut out of a model, told so that the same can be done to a new one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Graph, Kept, kept_indices
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import clean, modules_of
from lightning_sparse.core.surgery import Cuts, reshape

Attributes = dict[str, dict[str, Any]]  # by module and name: whole numbers, and tuples of them
_KEY = "channels"  # where a callback's state has its recipe
VERSION = 1


class Recipe:
    """Which channels of a model are left.

    Attributes:
        dense: shapes before the first cut, of the tensors that lost something.
        kept: int32 indices into these tensors that are left, by tensor and dimension.
        attributes: of modules, where they changed: [before the first cut, now].
        cut: whether the others are really out; else they are zeros.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom, Place
        >>> rows = torch.arange(4)[:, None]
        >>> graph = Graph((Atom("0", (Place("0.weight", 0, rows),), False),), {}, {}, {}, {"0.weight": (4, 3)})
        >>> recipe = Recipe()
        >>> recipe.add(graph, {"0": torch.tensor([0, 2, 3])})
        >>> graph = Graph((Atom("0", (Place("0.weight", 0, rows[:3]),), False),), {}, {}, {}, {"0.weight": (3, 3)})
        >>> recipe.add(graph, {"0": torch.tensor([0, 2])})
        >>> recipe.dense, recipe.kept
        ({'0.weight': (4, 3)}, {'0.weight': {0: tensor([0, 3], dtype=torch.int32)}})
    """

    def __init__(self) -> None:
        self.dense: dict[str, tuple[int, ...]] = {}
        self.kept: dict[str, dict[int, Tensor]] = {}
        self.attributes: dict[str, dict[str, list[Any]]] = {}
        self.cut = True

    def add(self, graph: Graph, kept: Kept) -> None:
        """These channels stay, of what was left."""
        for name, dims in kept_indices(graph, kept).items():
            self.dense.setdefault(name, graph.shapes[name])
            rows = self.kept.setdefault(name, {})
            for dim, index in dims.items():
                rows[dim] = rows[dim][index] if dim in rows else index.to(torch.int32)

    def note_attributes(self, before: Attributes, after: Attributes) -> None:
        """What a cut has changed, as :func:`attributes_of` tells it."""
        for module, values in after.items():
            for key, value in values.items():
                if key in before[module] and before[module][key] != value:
                    first = self.attributes.setdefault(module, {}).setdefault(key, [before[module][key], value])
                    first[1] = value

    def indices(self) -> Cuts:
        """What is left, as :func:`~lightning_sparse.core.surgery.reshape` takes it."""
        return {name: {dim: index.long() for dim, index in dims.items()} for name, dims in self.kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and plain containers; empty where nothing was removed."""
        if not self.dense:
            return {}
        return {
            "version": VERSION,
            "cut": self.cut,
            "dense": {name: list(shape) for name, shape in self.dense.items()},
            "kept": {name: {dim: index.clone() for dim, index in dims.items()} for name, dims in self.kept.items()},
            "attributes": {m: {k: list(pair) for k, pair in row.items()} for m, row in self.attributes.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read what :meth:`state_dict` wrote.

        Raises:
            ValueError: if another version wrote it.
        """
        if state and state.get("version") != VERSION:
            raise ValueError(f"cannot read channels of version {state.get('version')!r}; this is version {VERSION}")
        self.cut = bool(state.get("cut", True))
        self.dense = {name: tuple(shape) for name, shape in state.get("dense", {}).items()}
        self.kept = {name: dict(dims) for name, dims in state.get("kept", {}).items()}
        self.attributes = {m: {k: list(pair) for k, pair in r.items()} for m, r in state.get("attributes", {}).items()}

    def refuse_other(self, module: nn.Module, state: Mapping[str, Any], own: "Recipe | None" = None) -> None:
        """Stop where a checkpoint with this recipe is of another model, before anything is changed.

        A tensor must have had the same shape in both before any channel was removed.

        Args:
            module: about to take the checkpoint's shapes.
            state: its state dict.
            own: what has been cut out of ``module``.

        Raises:
            ValueError: naming every tensor that does not fit.
        """
        mine = {} if own is None else own.dense
        problems = []
        for key, value in state.items():
            name = clean(key)
            tensor = _find(module, key)
            if tensor is None or not isinstance(value, Tensor):
                continue  # load_state_dict says which keys are missing
            theirs, ours = self.dense.get(name, tuple(value.shape)), mine.get(name, tuple(tensor.shape))
            if theirs != ours:
                text = f"had shape {list(theirs)} before channels were removed, and has {list(ours)} here"
                problems.append(f"{name} {text}")
        raise_problems(problems[:8], "the checkpoint is of another model")

    @torch.no_grad()
    def complete(self, module: nn.Module, own: "Recipe | None" = None) -> None:
        """What a state dict does not tell: attributes of modules, and buffers that are not saved.

        Args:
            module: which has the shapes of the state dict already.
            own: what had been cut out of ``module`` before.
        """
        modules = modules_of(module)
        told = {} if own is None else {m: {k: pair[0] for k, pair in r.items()} for m, r in own.attributes.items()}
        for name, row in self.attributes.items():
            told.setdefault(name, {}).update({key: now for key, (_, now) in row.items()})
        for name, values in told.items():
            for key, value in values.items():
                setattr(modules[name], key, value)
        if self.cut:
            buffers = {clean(name): tensor for name, tensor in module.named_buffers()}
            whole = {name: buffers[name] for name, shape in self.dense.items() if _is(buffers.get(name), shape)}
            cuts = {name: dims for name, dims in self.indices().items() if name in whole}
            reshape(whole, cuts)


def recipe_in(checkpoint: Mapping[str, Any]) -> Recipe | None:
    """The recipe in a Lightning checkpoint, whatever the callback that wrote it was called; None where none is.

    Example:
        >>> recipe_in({"callbacks": {"ModelCheckpoint": {}}}) is None
        True
    """
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, Mapping) and isinstance(state.get(_KEY), Mapping):
            recipe = Recipe()
            recipe.load_state_dict(state[_KEY])
            return recipe
    return None


def attributes_of(model: nn.Module) -> Attributes:
    """Whole numbers, and tuples of them, that modules have as attributes; what a cut may have to set.

    Example:
        >>> attributes_of(nn.Linear(3, 2))
        {'': {'in_features': 3, 'out_features': 2}}
    """
    found: Attributes = {}
    for name, module in model.named_modules():
        values = {key: value for key, value in vars(module).items() if _is_size(value)}
        found[clean(name)] = values
    return found


def _is_size(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(type(part) is int for part in value)
    return type(value) is int


def _is(tensor: Tensor | None, shape: tuple[int, ...]) -> bool:
    return tensor is not None and tuple(tensor.shape) == shape


def _find(module: nn.Module, key: str) -> Tensor | None:
    path, _, name = key.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    tensor = owner._parameters.get(name, owner._buffers.get(name))
    return tensor if isinstance(tensor, Tensor) else None
