"""Which layers, optimizers and numbers have a form without zeros, and why others have none."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from lightning_sparse.compute.conv import SparseConv2d
from lightning_sparse.compute.embedding import SparseEmbedding
from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.linear import SparseLinear
from lightning_sparse.core.select import Target
from lightning_sparse.core.sharded import is_sharded

FORMS: dict[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    nn.Embedding: SparseEmbedding,
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_BY_ENTRY = (ASGD, LBFGS, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop)


def form(module: nn.Module) -> type[SparseLayer] | None:
    """The layer without zeros for a module of exactly this class: a subclass may compute something else.

    Example:
        >>> form(nn.Linear(2, 2)), form(nn.Conv1d(2, 2, 1))
        (<class 'lightning_sparse.compute.linear.SparseLinear'>, None)
    """
    return FORMS.get(type(module))


def unsupported(place: Target, owners: Sequence[nn.Module]) -> str:
    """Why a weight has no form without zeros; empty where it has one.

    Args:
        place: of the weight, with zeros.
        owners: the modules that hold it.

    Example:
        >>> conv = nn.Conv1d(2, 2, 1)
        >>> unsupported(Target("weight", conv, "weight"), [conv])
        'of a Conv1d'
    """
    module, weight = place.module, place.weight
    if len(owners) > 1:
        return "shared by several modules"
    if form(module) is None:
        return f"of a {type(module).__name__}"
    if is_sharded(weight):
        return "shared by processes"
    if type(weight) is not nn.Parameter or place.attribute != "weight":
        return "not a plain parameter"
    if weight.device.type != "cpu":
        return f"on the device {weight.device.type}"
    if weight.dtype not in _DTYPES:
        return f"of {weight.dtype}"
    return _peculiar(module)


def _peculiar(module: nn.Module) -> str:
    state_hooks = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")
    if not set(module._parameters) <= {"weight", "bias"} or module._buffers or module._modules:
        return "in a module with other parameters"
    if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
        return "in a module with a forward of its own"
    if any(getattr(module, name, None) for name in (*state_hooks, "_load_state_dict_post_hooks")):
        return "in a module with hooks on its state"
    if getattr(module.weight, "_backward_hooks", None) or getattr(module.weight, "_post_accumulate_grad_hooks", None):
        return "with hooks on its gradient"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return "of an embedding that renormalises, scales or gives sparse gradients"
    return ""


def mixing(optimizers: Iterable[Optimizer]) -> list[str]:
    """Names of optimizers that may not step each entry by itself: these need a weight in its shape.

    Example:
        >>> mixing([torch.optim.AdamW([torch.zeros(1)]), torch.optim.Adafactor([torch.zeros(1)])])
        ['Adafactor']
    """
    return [type(optimizer).__name__ for optimizer in optimizers if type(optimizer) not in _BY_ENTRY]
