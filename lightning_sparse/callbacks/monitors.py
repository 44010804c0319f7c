"""What picks the best model while its density still falls: checkpoints and early stopping."""

from typing import Any

import torch

from lightning_sparse.callbacks.base import rank_zero_info, rank_zero_warn
from lightning_sparse.core.sparsifier import Sparsifier


def watchers(trainer: Any) -> list[Any]:
    """The Trainer's callbacks that compare a monitored value with the best so far, found by what they carry.

    Those that monitor a density itself know what they wait for.
    """
    carry = ("best_k_models", "wait_count")
    found = [c for c in trainer.callbacks if any(hasattr(c, attribute) for attribute in carry)]
    return [c for c in found if (monitor := getattr(c, "monitor", None)) is not None and not _is_density(monitor)]


def _is_density(monitor: str) -> bool:
    return monitor.partition("/")[0] in ("density", "nonzero_density", "flops_share", "nonzero")


def warn_of_dense_best(name: str, trainer: Any, sparsifier: Sparsifier) -> None:
    """Say that the best model may be one that is not sparse yet."""
    if sparsifier.settled() or not (found := watchers(trainer)):
        return
    kinds = ", ".join(sorted({type(c).__name__ for c in found}))
    rank_zero_warn(
        f"{name}: density falls during the run, so the best model that {kinds} finds may be a denser one from before "
        "the final density; reset_monitors=True lets them begin anew there"
    )


def reset_monitors(name: str, trainer: Any, reached: str = "the final density is reached") -> None:
    """Forget best values and patience; files that were written stay on disk."""
    for callback in watchers(trainer):
        worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        if hasattr(callback, "best_k_models"):
            callback.best_k_models, callback.kth_best_model_path, callback.kth_value = {}, "", worst
            callback.best_model_path, callback.best_model_score, callback.current_score = "", None, None
        if hasattr(callback, "wait_count"):
            callback.wait_count, callback.best_score = 0, worst
    rank_zero_info(f"{name}: {reached}; ModelCheckpoint and EarlyStopping begin anew")
