"""Which layers can be quantized, and why others stay in float."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import CONVS, TRANSPOSED, is_linear, matches, targets

UNCALLED = "its module is not called in a training step: the weight is read by other code, or not at all"


class Candidates(NamedTuple):
    """What :func:`candidates` found.

    Attributes:
        modules: layers by name, in the model's order.
        left: weights that stay in float, by parameter name, with the reason.
    """

    modules: dict[str, nn.Module]
    left: dict[str, str]


def candidates(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> Candidates:
    """Linear layers and convolutions of any kind, frozen ones too, whose weights are plain parameters of their own.

    Args:
        model: any module whose parameters exist.
        include: globs over parameter or module names; None takes all.
        exclude: globs of what stays in float.

    Raises:
        ValueError: on a glob that fits nothing, or when nothing is left; all at once.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LSTM(4, 2), nn.Linear(2, 2))
        >>> found = candidates(net, exclude=["3"])
        >>> list(found.modules), found.left["0.weight"]
        (['1'], 'an Embedding looks rows up in it')
    """
    modules, left = dict[str, nn.Module](), dict[str, str]()
    for target, owners in targets(model):
        weight = target.weight
        if isinstance(weight, nn.parameter.UninitializedParameter) or (weight.ndim >= 2 and weight.is_floating_point()):
            if why := _unfit(target.attribute, owners):
                if not target.attribute.startswith("bias"):
                    left[target.name] = why
            else:
                modules[target.name.rpartition(".")[0]] = target.module
    problems = _unmatched(modules, left, {"include": include or (), "exclude": exclude})
    for name in list(modules):
        weight_name = parameter(name)
        if include is not None and not matches(weight_name, include):
            left[weight_name] = "include= does not name it"
        elif matches(weight_name, exclude):
            left[weight_name] = "exclude= names it"
        else:
            continue
        del modules[name]
    if not modules and not problems:
        problems.append(f"no layer can be quantized; in float stay {_listed(left)}")
    raise_problems(problems, "quantization")
    return Candidates(modules, left)


def parameter(module: str) -> str:
    """The name of the weight of a layer.

    Example:
        >>> parameter("net.0"), parameter("")
        ('net.0.weight', 'weight')
    """
    return f"{module}.weight" if module else "weight"


def fixed_bits(names: Sequence[str], bits: int | Mapping[str, int | None]) -> tuple[dict[str, int], dict[str, str]]:
    """Bits of each layer where the user has said them, and what stays in float.

    Of several globs the first that fits counts; what none fits has 8 bits.

    Args:
        names: of the layers.
        bits: of all, or by glob over parameter or module names; None leaves a layer in float.

    Raises:
        ValueError: on globs that fit nothing.

    Example:
        >>> fixed_bits(["conv", "head"], {"head": None, "*": 4})
        ({'conv': 4}, {'head.weight': 'bits= leaves it in float'})
    """
    if not isinstance(bits, Mapping):
        return dict.fromkeys(names, bits), {}
    weights = [parameter(name) for name in names]
    lost = [glob for glob in bits if not any(matches(weight, [glob]) for weight in weights)]
    if lost:
        raise_problems([f"bits={lost} fits no layer; there are {', '.join(names)}"], "quantization")
    chosen, left = dict[str, int](), dict[str, str]()
    for name in names:
        found = next((value for glob, value in bits.items() if matches(parameter(name), [glob])), 8)
        if found is None:
            left[parameter(name)] = "bits= leaves it in float"
        else:
            chosen[name] = found
    return chosen, left


def _unfit(attribute: str, owners: Sequence[nn.Module]) -> str:
    """Why a weight cannot be quantized; empty when it can."""
    owner = owners[0]
    for other in owners:
        if isinstance(other, nn.Embedding | nn.EmbeddingBag):
            return "an Embedding looks rows up in it"
    if isinstance(owner, nn.MultiheadAttention):
        return "attention reads it without a layer of its own"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent layers are not quantized"
    if attribute.startswith("original"):
        return "it is parametrized"
    layer = attribute == "weight" and (isinstance(owner, CONVS + TRANSPOSED) or is_linear(owner))
    if not layer:
        return f"{type(owner).__name__} is neither a Linear layer nor a convolution"
    if len({type(each) for each in owners}) > 1:
        return f"modules of different kinds share it: {', '.join(sorted({type(each).__name__ for each in owners}))}"
    return ""


def _unmatched(
    modules: Mapping[str, nn.Module], left: Mapping[str, str], globs: Mapping[str, Sequence[str]]
) -> list[str]:
    names = [*map(parameter, modules), *left]
    return [
        f"{kind}={lost} fits no weight; there are {', '.join(names) or 'none'}"
        for kind, wanted in globs.items()
        if (lost := [glob for glob in wanted if not any(matches(name, [glob]) for name in names)])
    ]


def _listed(left: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in left.items()) or "no weights, for there are none"
