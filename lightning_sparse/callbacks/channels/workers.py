"""Fits in processes that are spawned or forked: what comes back to the process that started them is a state dict."""

import weakref
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.callbacks.channels.state import saved, take
from lightning_sparse.channels.restore import RETURNED, ShapeFollowing, ShapeHook

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def refuse_unprepared(pruner: "BNChannelPruner", trainer: Any, pl_module: nn.Module) -> None:
    """Stop where the smaller weights would not fit the model of the process that waits: a whole fit would be lost.

    Raises:
        MisconfigurationException: with the way out.
    """
    hooks = [getattr(hook, "hook", hook) for hook in pl_module._load_state_dict_pre_hooks.values()]
    prepared = isinstance(pl_module, ShapeFollowing) or any(isinstance(hook, ShapeHook) for hook in hooks)
    cuts = pruner.shrink != "never" and (pruner.keep < 1 or pruner.threshold is not None)
    if cuts and is_worker(trainer) and not prepared:
        raise MisconfigurationException(
            f"{pruner.name}: this strategy trains in processes of their own and loads the weights into the model of "
            "the one that called fit, where they would not fit after channels have left. Call pruner.attach(model) "
            'before fit, put ShapeFollowing before LightningModule in the list of bases, or use Trainer(strategy="ddp")'
        )


def is_worker(trainer: Any) -> bool:
    """Whether this process was spawned or forked by the one that called ``fit``."""
    return any(kind.__name__ == "_MultiProcessingLauncher" for kind in type(trainer.strategy.launcher).__mro__)


def send_back(pruner: "BNChannelPruner", trainer: Any, pl_module: nn.Module) -> None:
    """The fit is over; the state dict that is about to travel tells what was cut, as far as it cannot show it."""
    if not is_worker(trainer) or not pruner.recipe.dense:
        return

    def tell(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state[prefix + RETURNED] = saved(pruner)

    pl_module.register_state_dict_post_hook(tell)  # type: ignore[no-untyped-call]  # the process ends with it


def take_back(pruner: "BNChannelPruner") -> Callable[[nn.Module, Any, str], "Callable[[], None] | None"]:
    """For the process that waits: what to do with a state dict that :func:`send_back` has added to."""

    def check(module: nn.Module, state: Any, prefix: str) -> Callable[[], None] | None:
        told = None if prefix else cast(MutableMapping[str, Any], state).pop(RETURNED, None)
        if told is None:
            return None
        take(pruner, told)
        pruner.model = weakref.ref(module)
        return lambda: pruner.recipe.complete(module)

    return check
