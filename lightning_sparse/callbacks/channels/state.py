"""What a checkpoint holds of a BNChannelPruner: tensors, numbers and plain containers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_sparse.channels.recipe import Recipe

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def saved(pruner: "BNChannelPruner") -> dict[str, Any]:
    """What was cut, and how far the schedule is; ``"channels"`` is what rebuilds the model."""
    return {
        "version": 1,
        "done": pruner.done,
        "steps": pruner.steps,
        "first": dict(pruner.first),
        "counts": dict(pruner.counts),
        "held": {name: index.clone() for name, index in pruner.held.items()},
        "channels": pruner.recipe.state_dict(),
        "penalty": pruner.pull.state_dict(),
        "history": pruner.history.state_dict(),
        "begin_anew": pruner.begin_anew,
    }


def take(pruner: "BNChannelPruner", state: Mapping[str, Any]) -> None:
    """Go on from a saved state, with whose weights the model was loaded; from none, with a model that is whole."""
    pruner.done, pruner.first = state.get("done", 0), dict(state.get("first", {}))
    pruner.steps = state.get("steps", 0)
    pruner.counts = dict(state.get("counts", {}))
    pruner.held = {name: index.clone() for name, index in state.get("held", {}).items()}
    pruner.recipe = Recipe()
    pruner.recipe.load_state_dict(state.get("channels", {}))
    pruner.pull.load_state_dict(state.get("penalty", {}))
    pruner.history.load_state_dict(state.get("history", []))
    pruner.begin_anew = state.get("begin_anew", False)
    pruner.watch.forget()
