"""Which part of a LightningModule is exported, and what it is called in a report."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import modules_of
from lightning_sparse.export.copies import plain_copy, unwrapped
from lightning_sparse.quant.quantization import Layer, Quantization, Range, within

_SPARSE = 0.01  # share of zeros that a dense model may have by chance


def part_name(module: nn.Module, wanted: str | None = None) -> str:
    """The name of what can be called: "" for the module itself, if it has a ``forward``, else its only child.

    Args:
        module: a LightningModule.
        wanted: the name of the part, where the user says it.

    Raises:
        ValueError: if there is no such part, or several.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> model = LightningModule()
        >>> model.net = nn.Linear(2, 2)
        >>> part_name(model)
        'net'
    """
    if wanted is not None:
        names = list(modules_of(module))
        raise_problems([] if wanted in names else [f"part={wanted!r} is no module of the model"], "report")
        return wanted
    if type(module).forward.__qualname__ not in ("LightningModule.forward", "Module._forward_unimplemented"):
        return ""
    children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if len(children) != 1:
        kind, found = type(module).__name__, ", ".join(children) or "none"
        raise ValueError(f"{kind} has no forward, so part= must name what is exported; its parts: {found}")
    return children[0]


def part_of(module: nn.Module, name: str) -> nn.Module:
    """The part of that name, without what compilers put around it."""
    found = modules_of(module)[name]
    return unwrapped(found)


def with_part(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A copy of the module, with another in the place of one part; the part itself where the name is ""."""
    if not name:
        return part
    whole = plain_copy(module, "report")
    path, _, last = name.rpartition(".")
    setattr(whole.get_submodule(path), last, part)
    return whole


def quantization_of(states: Iterable[Quantization | None], part: str) -> Quantization | None:
    """What callbacks have quantized of one part, all together; None for nothing.

    Example:
        >>> from lightning_sparse.quant.quantization import Layer
        >>> first, second = Quantization({"net.0": Layer("net.0", 8)}), Quantization({"head": Layer("head", 4)})
        >>> quantization_of([first, None, second], "net").layers
        {'0': Layer(module='0', bits=8, norm=None, clip=None, input=None, output=None)}
    """
    layers, ranges, left = dict[str, Layer](), dict[str, Range](), dict[str, str]()
    for known in states:
        if known is not None:
            layers |= known.layers
            ranges |= known.ranges
            left |= known.left
    found = within(Quantization(layers, ranges, left), f"{part}." if part else "")
    return found if found.layers else None


def own_name(module: nn.Module, cut: bool) -> str:
    """What came of the training, in a word or two.

    Args:
        module: the model.
        cut: whether channels are out of it.

    Example:
        >>> own_name(nn.Linear(2, 2), cut=True)
        'slim'
    """
    weights = [weight for weight in module.parameters() if weight.ndim > 1]
    size, live = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    words = (["slim"] if cut else []) + (["sparse"] if size and 1 - live / size > _SPARSE else [])
    return " + ".join(words) or "trained"


def chosen(values: Mapping[str, Any], wanted: str | None, monitored: Iterable[str] = ()) -> str | None:
    """The name of the metric that a report shows; None if none suggests itself.

    Args:
        values: what was logged, by name.
        wanted: by the user.
        monitored: by checkpoints and early stopping; the first that was logged is taken.

    Raises:
        ValueError: if what is wanted was not logged.

    Example:
        >>> chosen({"train_loss": 1, "val_loss": 1, "val_acc": 1}, None), chosen({"train_loss": 1}, None)
        ('val_acc', None)
    """
    if wanted is not None and wanted not in values:
        raise ValueError(f"metric={wanted!r} was not logged in validation; there are {', '.join(values) or 'none'}")
    if wanted is not None:
        return wanted
    names = [name for name in values if not name.startswith("train")]
    found = [name for name in monitored if name in values] + [name for name in names if "acc" in name.lower()]
    return next(iter(found + [name for name in names if "val" in name.lower()]), None)
