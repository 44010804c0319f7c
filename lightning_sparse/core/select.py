"""Which parameters become sparse."""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_sparse.core.compact import Compact
from lightning_sparse.core.errors import raise_problems

_WRAPPERS = ("_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WIDTHS = (("out_features", "in_features"), ("out_channels", "in_channels"))


class Target(NamedTuple):
    """One parameter by its place in the model: the tensor is looked up each time, never held."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def weight(self) -> Tensor:
        """The parameter as it is now."""
        weight: Tensor = getattr(self.module, self.attribute)
        return weight

    @property
    def shape(self) -> torch.Size:
        """Of the weight with its zeros."""
        compact = isinstance(self.module, Compact) and self.attribute == "values"
        return self.module.shape if compact else self.weight.shape  # type: ignore[return-value]


def clean(name: str) -> str:
    """The name without what wrappers put in: a compiled and a plain model share checkpoints.

    Example:
        >>> clean("net._orig_mod.0.weight")
        'net.0.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model and all in it, by clean name; one that stands in two places has its first name only.

    Example:
        >>> list(modules_of(nn.Sequential(nn.ReLU())))
        ['', '0']
    """
    return {clean(name): module for name, module in model.named_modules()}


def targets(model: nn.Module) -> Iterator[tuple[Target, list[nn.Module]]]:
    """Every parameter once, tied ones under their first name, with all the modules that own it."""
    found: dict[int, tuple[Target, list[nn.Module]]] = {}
    for prefix, module in model.named_modules():
        for attribute, weight in module._parameters.items():
            if weight is not None:
                last = "weight" if isinstance(module, Compact) and attribute == "values" else attribute
                name = clean(f"{prefix}.{last}" if prefix else last)
                found.setdefault(id(weight), (Target(name, module, attribute), []))[1].append(module)
    yield from found.values()


def inputs_first(module: nn.Module) -> bool:
    """Whether weights are stored as (inputs, outputs, ...): transposed convolutions, the Conv1D of transformers.

    Example:
        >>> inputs_first(nn.Linear(3, 2)), inputs_first(nn.ConvTranspose1d(3, 2, 1))
        (False, True)
    """
    return isinstance(module, TRANSPOSED) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer: a weight of (inputs, outputs), whose number of outputs is ``nf``."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and weight is not None and weight.shape[1:] == (getattr(module, "nf", 0),)


def is_linear(module: nn.Module) -> bool:
    """A Linear, or a layer of another package that says of itself what a Linear does (torch_geometric has its own)."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) or weight is None:
        return weight is not None
    widths = [(getattr(module, outputs, 0), getattr(module, inputs, 0)) for outputs, inputs in _WIDTHS]
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return any(outputs for outputs, _ in widths)
    return tuple(weight.shape) in widths or _is_conv1d(module)


def _has_sparse_gradients(module: nn.Module) -> bool:
    return isinstance(module, _EMBEDDINGS) and module.sparse


def _may_be_sparse(target: Target, owners: Sequence[nn.Module]) -> bool:
    if isinstance(owners[0], _NORMS) or target.attribute.startswith("bias"):  # attention's bias_k has three dimensions
        return False
    if isinstance(target.weight, nn.parameter.UninitializedParameter):
        return True
    return len(target.shape) >= 2 and target.weight.is_floating_point()


def _is_default(target: Target, owners: Sequence[nn.Module]) -> bool:
    if any(isinstance(owner, _EMBEDDINGS) for owner in owners):  # also a head tied to an embedding
        return False
    module = target.module
    if isinstance(module, Compact):
        return module.common and target.attribute == "values"
    if isinstance(module, CONVS + TRANSPOSED):
        return target.attribute == "weight" and not (module.groups > 1 and module.groups == module.in_channels)
    if is_linear(module):
        return target.attribute == "weight"
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a glob fits the parameter's name, or the name of its module.

    Example:
        >>> matches("encoder.0.weight", ["encoder.*"]), matches("head.weight", ["head"]), matches("head.weight", ["he"])
        (True, True, False)
    """
    return any(fnmatchcase(name, g) or fnmatchcase(name.rpartition(".")[0], g) for g in globs)


def select(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[Target]:
    """The parameters to make sparse, in the order of the model.

    Without ``include``: weights of Linear (also of torch_geometric's, and of the Conv1D of transformers), convolutions
    (not depthwise), transposed convolutions, attention projections and recurrent layers. Never biases and norms;
    embeddings (and heads tied to one) only when ``include`` names them. Frozen parameters stay as they are.

    Args:
        model: any module whose parameters exist.
        include: globs over parameter or module names; None takes the default.
        exclude: globs of what stays dense.

    Raises:
        ValueError: on lazy or meta parameters, on embeddings with sparse gradients, on a glob that fits nothing, or
            when nothing is left; all at once.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        >>> [target.name for target in select(net, exclude=["2"])]
        ['0.weight']
    """
    for kind, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise ValueError(f"{kind} must be a list of globs, got the string {globs!r}; write [{globs!r}]")
    possible = [(t, owners) for t, owners in targets(model) if _may_be_sparse(t, owners)]
    problems = []
    names = [t.name for t, _ in possible]
    for kind, globs in (("include", include or ()), ("exclude", exclude)):
        if lost := [g for g in globs if not any(matches(n, [g]) for n in names)]:
            problems.append(f"{kind}={lost} matches no weight; candidates: {', '.join(names) or 'none'}")
    wanted = [t for t, owners in possible if (_is_default(t, owners) if include is None else matches(t.name, include))]
    chosen = [t for t in wanted if not matches(t.name, exclude)]
    problems += _not_ready(chosen)
    if not chosen and not problems:
        problems.append(f"nothing to make sparse; name weights with include=[...]; candidates: {names or 'none'}")
    rows = {t.name for t, owners in possible if any(_has_sparse_gradients(owner) for owner in owners)}
    if tables := [t.name for t in chosen if t.name in rows and t.weight.requires_grad]:
        problems.append(
            f"embeddings with sparse=True have gradients that no mask fits: {', '.join(tables)}; "
            "build them with sparse=False, or leave them dense with exclude=[...]"
        )
    if chosen and not problems and not (trained := [t for t in chosen if t.weight.requires_grad]):
        problems.append(f"every chosen weight is frozen (requires_grad=False): {', '.join(t.name for t in chosen)}")
    raise_problems(problems, "selecting weights")
    return trained


def left_dense(model: nn.Module, chosen: Collection[str], exclude: Sequence[str] = ()) -> list[str]:
    """Weights that could be sparse, were not excluded by name, and stay dense: frozen, parametrized, embeddings ...

    Example:
        >>> left_dense(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), ["1.weight"])
        ['0.weight']
    """
    possible = [t.name for t, owners in targets(model) if _may_be_sparse(t, owners)]
    return [name for name in possible if name not in chosen and not matches(name, exclude)]


def _not_ready(found: Sequence[Target]) -> list[str]:
    lazy = [t.name for t in found if isinstance(t.weight, nn.parameter.UninitializedParameter)]
    meta = [t.name for t in found if t.name not in lazy and t.weight.is_meta]
    problems = []
    if lazy:
        problems.append(f"lazy parameters have no shape yet: {', '.join(lazy)}; run one batch through the model first")
    if meta:
        problems.append(f"parameters on the meta device have no values: {', '.join(meta)}; materialise the model first")
    return problems
