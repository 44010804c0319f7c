"""A Trainer's model takes the shapes of the checkpoint that is loaded into it, if it is one of this model."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparse.callbacks.base import refers
from lightning_sparse.callbacks.run import averages
from lightning_sparse.channels.recipe import Recipe
from lightning_sparse.channels.restore import follow_shapes, saved_tensors

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


class Following:
    """Checks what is loaded, and completes it.

    Args:
        pruner: knows what has been cut out of the model.
        trainer: knows the checkpoint.
    """

    def __init__(self, pruner: "BNChannelPruner", trainer: Any) -> None:
        self._pruner, self._trainer = pruner, trainer

    def attach(self, pl_module: nn.Module) -> list[RemovableHandle]:
        """For the model, and for its moving averages that are there already; later ones are copies of the model."""
        return [follow_shapes(pl_module, self._check), *(follow_shapes(each) for each in averages(self._trainer))]

    def _check(self, module: nn.Module, state: Mapping[str, Any], prefix: str) -> Callable[[], None] | None:
        """Refuse a checkpoint of another model; within a fit, any other shape: no optimizer would follow."""
        if prefix or not _differs(module, state):
            return None
        own = self._pruner.recipe if refers(self._pruner.model, module) else Recipe()
        if self._pruner.running:
            text = "weights of other shapes were loaded within a fit, whose optimizers cannot follow; start another fit"
            raise ValueError(f"{self._pruner.name}: {text}")
        checkpoint = getattr(self._trainer._checkpoint_connector, "_loaded_checkpoint", None) or {}
        recipe = Recipe()
        recipe.load_state_dict(checkpoint.get("callbacks", {}).get(self._pruner.state_key, {}).get("channels", {}))
        recipe.refuse_other(module, state, own)
        return lambda: recipe.complete(module, own)


def _differs(module: nn.Module, state: Mapping[str, Any]) -> bool:
    pairs = ((tensor, state.get(name)) for name, (tensor, _) in saved_tensors(module))
    return any(isinstance(other, Tensor) and other.shape != tensor.shape for tensor, other in pairs)
