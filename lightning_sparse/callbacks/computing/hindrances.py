"""What keeps the layers of a run from being computed without their zeros."""

from collections.abc import Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import LBFGS
from torch.optim.swa_utils import AveragedModel

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.compute.support import mixing, unsupported
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.select import Target, select, targets

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
_TORCHS = set(vars(nn.Module()))  # attributes that all modules have
_CONTAINERS = (list, tuple, set, frozenset, ValuesView)
_OTHERS = {  # callbacks that need dense layers, and why
    "BNChannelPruner": "cuts channels out of dense layers",
    "QuantizeSparse": "quantizes dense layers",
    "BaseFinetuning": "saves the names of what optimizers step",
    "ModelPruning": "reparametrizes dense layers",
}


def refuse_compute(updater: "MaskUpdater", trainer: Any, pl_module: Any, algorithm: Algorithm) -> None:
    """Before a weight is touched: is there a layer that could be without zeros, if the user insists?

    Raises:
        MisconfigurationException: if not, with all reasons.
    """
    if updater.compute != "sparse":
        return
    reasons = hindrances(trainer, pl_module, algorithm)
    chosen = select(pl_module, updater.include, updater.exclude)
    if not reasons and len(without := without_form(pl_module, chosen)) == len(chosen):
        reasons = [f"{name} is {reason}" for name, reason in without.items()]
    if reasons:
        raise MisconfigurationException(
            f'{updater.name}: compute="sparse" cannot be: {"; ".join(reasons)}. Give compute="dense" or "auto".'
        )


def without_form(pl_module: nn.Module, places: Sequence[Target]) -> dict[str, str]:
    """Weights that have no form without zeros, and why."""
    owners: Mapping[str, Sequence[nn.Module]] = {target.name: found for target, found in targets(pl_module)}
    listed = _listed(pl_module)
    reasons = {place.name: unsupported(place, owners[place.name]) for place in places}
    reasons |= {p.name: "kept in a list or dict of the model's own" for p in places if id(p.weight) in listed}
    return {name: reason for name, reason in reasons.items() if reason}


def _listed(pl_module: nn.Module) -> set[int]:
    """Tensors that modules keep in plain containers, by identity: who looks there would find them empty."""
    own = [value for module in pl_module.modules() for name, value in vars(module).items() if name not in _TORCHS]
    held = [value.values() if isinstance(value, Mapping) else value for value in own]
    return {id(one) for each in held if isinstance(each, _CONTAINERS) for one in each if isinstance(one, Tensor)}


def hindrances(trainer: Any, pl_module: Any, algorithm: Algorithm) -> list[str]:
    """What of a run no layer without zeros can work with."""
    found = []
    if reason := algorithm.why_dense():
        found.append(f"{type(algorithm).__name__} {reason}")
    if not any(kind.__name__ in _STRATEGIES for kind in type(trainer.strategy).__mro__):
        found.append(f"{type(trainer.strategy).__name__} is not supported, SingleDeviceStrategy and DDPStrategy are")
    if trainer.strategy.root_device.type != "cpu":
        found.append(f"not supported on the device {trainer.strategy.root_device.type}")
    if trainer.precision not in _PRECISIONS:
        found.append(f"precision={trainer.precision!r} is not supported, {', '.join(_PRECISIONS)} are")
    if names := mixing(map(unwrap, trainer.optimizers)):
        found.append(f"{', '.join(names)} may not step each weight by itself")
    modules = list(pl_module.modules())
    parts = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules)
    if parts or getattr(pl_module, "_compiler_ctx", None) is not None:
        found.append("the model is compiled")
    if any(isinstance(module, AveragedModel) for module in modules):
        found.append("the model keeps an average of itself")
    if any(isinstance(unwrap(optimizer), LBFGS) for optimizer in trainer.optimizers) and _updaters(trainer) > 1:
        found.append("LBFGS has one state for the layers of several MaskUpdaters")
    return found + _others(trainer)


def _updaters(trainer: Any) -> int:
    """How many MaskUpdaters take zeros out."""
    return sum(getattr(callback, "compute", "dense") in ("sparse", "auto") for callback in trainer.callbacks)


def _others(trainer: Any) -> list[str]:
    """Callbacks that need dense layers."""
    found = []
    for callback in trainer.callbacks:
        kinds = [kind.__name__ for kind in type(callback).__mro__]
        found += [f"{name} {why}" for name, why in _OTHERS.items() if name in kinds]
        if "Regularizer" in kinds and getattr(callback, "on", "") == "weights":
            found.append("Regularizer(on='weights') penalizes dense weights")
    return found
