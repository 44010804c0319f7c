"""Attributes of modules follow the shapes of their tensors."""

from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

from torch import nn

from lightning_sparse.core.surgery import tensors

Shapes = Mapping[str, tuple[int, ...]]  # by the name that the module itself gives a tensor
_PARAMETRIZATIONS = ".parametrizations."
_HINTS = ("dim", "feat", "chan", "size", "width", "hidden", "embed", "nf", "nx", "units", "d_model", "num_parameters")


def fix(model: nn.Module, names: Iterable[str], old_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set ``in_channels``, ``out_features``, ``num_features`` ... of the modules that own these tensors.

    Args:
        model: whose tensors have their new shapes.
        names: of the parameters and buffers that changed.
        old_shapes: by name, before.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1))
        >>> from lightning_sparse.core.surgery import resize
        >>> resize(net[0].weight, (5, 3, 1, 1))
        >>> fix(net, ["0.weight"], {"0.weight": (8, 3, 1, 1)})
        >>> net[0].out_channels
        5
    """
    named = tensors(model)
    old = {id(named[n]): tuple(old_shapes[n]) for n in names if named[n].shape != tuple(old_shapes[n])}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        own = {n: t for n, t in [*module._parameters.items(), *module._buffers.items()] if t is not None}
        changed = {n: old[id(t)] for n, t in own.items() if id(t) in old}
        shapes = {n: tuple(t.shape) for n, t in own.items()}
        if not changed:
            continue
        owner, found, attribute = f".{path}".partition(_PARAMETRIZATIONS)
        if found:  # the weight itself would be computed anew, with side effects: its largest part has its shape
            largest = max(own, key=lambda n: own[n].numel())
            module, shapes = modules[owner.lstrip(".")], {attribute: shapes[largest]}
            changed = {attribute: changed.get(largest, shapes[attribute])}
        follow(module, changed, shapes)


@singledispatch
def follow(module: nn.Module, old: Shapes, new: Shapes) -> None:
    """Set the attributes of one module whose tensors have changed.

    Without a rule of its own: pairs of widths that fitted the weight, then numbers that equal the old size of a
    dimension and have a name that speaks of widths.

    Args:
        module: any.
        old: shapes before, of what changed.
        new: shapes now, of all its own tensors.
    """
    for names in (("out_features", "in_features"), ("out_channels", "in_channels"), ("nx", "nf")):
        values = tuple(getattr(module, n, None) for n in names)
        if values == old.get("weight"):
            _set(module, dict(zip(names, new["weight"], strict=True)))
            return
    for name, shape in old.items():
        for before, after in zip(shape, new[name], strict=True):
            if before != after:
                _rename(module, before, after)


def _rename(module: nn.Module, before: int, after: int) -> None:
    for key, value in list(vars(module).items()):
        if type(value) is int and value == before and any(hint in key for hint in _HINTS):
            setattr(module, key, after)


def _set(module: nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if getattr(module, name, None) != value:
            setattr(module, name, value)


@follow.register
def _(module: nn.modules.conv._ConvNd, old: Shapes, new: Shapes) -> None:
    """Groups of a depthwise layer are its inputs."""
    if "weight" not in new:
        return
    (first, second), each = new["weight"][:2], module.out_channels // module.groups
    depthwise = module.groups > 1 and module.groups == module.in_channels
    groups = module.groups if not depthwise else first if module.transposed else first // each
    ends = (second * groups, first) if module.transposed else (first, second * groups)
    _set(module, {"groups": groups, "out_channels": ends[0], "in_channels": ends[1]})


@follow.register
def _(module: nn.Linear, old: Shapes, new: Shapes) -> None:
    """(outputs, inputs)."""
    if "weight" in new:
        _set(module, dict(zip(("out_features", "in_features"), new["weight"], strict=True)))


@follow.register
def _(module: nn.Bilinear, old: Shapes, new: Shapes) -> None:
    """(outputs, inputs of one, inputs of the other)."""
    _set(module, dict(zip(("out_features", "in1_features", "in2_features"), new["weight"], strict=True)))


@follow.register
def _(module: nn.modules.batchnorm._NormBase, old: Shapes, new: Shapes) -> None:
    """Batch and instance norm."""
    for name in ("weight", "running_mean"):
        if name in new:
            _set(module, {"num_features": new[name][0]})


@follow.register(nn.LayerNorm)
@follow.register(nn.RMSNorm)
def _(module: nn.LayerNorm | nn.RMSNorm, old: Shapes, new: Shapes) -> None:
    """All dimensions of the weight."""
    _set(module, {"normalized_shape": new["weight"]})


@follow.register
def _(module: nn.GroupNorm, old: Shapes, new: Shapes) -> None:
    """Groups get smaller."""
    _set(module, {"num_channels": new["weight"][0]})


@follow.register(nn.Embedding)
@follow.register(nn.EmbeddingBag)
def _(module: nn.Embedding | nn.EmbeddingBag, old: Shapes, new: Shapes) -> None:
    """(rows, width)."""
    _set(module, dict(zip(("num_embeddings", "embedding_dim"), new["weight"], strict=True)))


@follow.register
def _(module: nn.PReLU, old: Shapes, new: Shapes) -> None:
    """A slope each."""
    _set(module, {"num_parameters": new["weight"][0]})


@follow.register
def _(module: nn.RNNBase, old: Shapes, new: Shapes) -> None:
    """The inputs of the first layer; hidden ones do not change."""
    _set(module, {"input_size": new["weight_ih_l0"][1]})


@follow.register
def _(module: nn.RNNCellBase, old: Shapes, new: Shapes) -> None:
    """Inputs; hidden ones do not change."""
    _set(module, {"input_size": new["weight_ih"][1]})


@follow.register
def _(module: nn.MultiheadAttention, old: Shapes, new: Shapes) -> None:
    """Width, and width of a head."""
    if "in_proj_weight" in new:
        width = new["in_proj_weight"][1]
        values = {"embed_dim": width, "kdim": width, "vdim": width}
    else:
        widths = (new["q_proj_weight"][0], new["k_proj_weight"][1], new["v_proj_weight"][1])
        values = dict(zip(("embed_dim", "kdim", "vdim"), widths, strict=True))
    _set(module, {**values, "head_dim": values["embed_dim"] // module.num_heads})
