"""What a Trainer knows of its run: the strategy, the length, the random states."""

from math import ceil, isfinite
from typing import Any

import torch

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info
from lightning_sparse.core.random_state import load_random_state, save_random_state
from lightning_sparse.core.sparsifier import Sparsifier

_REFUSED = {
    "FSDPStrategy": "it flattens and shards parameters",
    "DeepSpeedStrategy": "it steps hidden copies of the weights",
    "ModelParallelStrategy": "distributed tensors are not supported yet",
}


def refuse_strategy(trainer: Any, callback: str) -> None:
    """Stop before training starts under a strategy that cannot keep weights sparse.

    Raises:
        MisconfigurationException: with the way out.
    """
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in _REFUSED:
            raise MisconfigurationException(
                f"{callback} does not work with {kind.__name__}: {_REFUSED[kind.__name__]}. "
                'Use Trainer(strategy="ddp") or a single device.'
            )


def horizon(trainer: Any) -> tuple[int | None, int | None]:
    """Optimizer steps of the run and of an epoch; None where Lightning cannot know them."""
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    by_steps = trainer.max_steps != -1 and len(trainer.optimizers) > 1  # max_steps counts the steps of all optimizers
    known = isfinite(total) and total > 0 and not by_steps
    epoch = ceil(batches / trainer.accumulate_grad_batches) if isfinite(batches) else None
    return int(total) if known else None, epoch


def gather_random_states(alone: bool) -> list[dict[str, Any]]:
    """The random states of every rank, in their order.

    Lightning writes rank zero's checkpoint only, but asks all ranks for it: here they can meet. After an error they may
    never come, so then (``alone``) each speaks for itself.
    """
    mine = save_random_state()
    if alone or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, mine)
    return states


def restore_random_states(trainer: Any, states: list[dict[str, Any]]) -> None:
    """Random states as they were when the checkpoint was written.

    Lightning has made the epoch's iterator by now, and drawn its seeds from the states of a fresh process. Where the
    checkpoint ended an epoch, the iterator is made again from the right ones (Lightning 2.5.0, which does not know
    ``is_resuming``, does so itself after ``on_train_batch_end``); in the middle of an epoch it belongs to a stateful
    loader, which restores itself.
    """
    if len(states) != trainer.world_size:
        text = f"random states of {len(states)} ranks were saved and {trainer.world_size} run: they are not restored"
        rank_zero_info(text)
        return
    load_random_state(states[trainer.global_rank])
    loop = trainer.fit_loop
    fetcher, progress = getattr(loop, "_data_fetcher", None), loop.epoch_loop.batch_progress
    mid_batch = progress.current.completed < progress.current.ready  # saved in on_train_batch_end
    if fetcher is not None and progress.is_last_batch and (getattr(loop, "is_resuming", False) or mid_batch):
        iter(fetcher)


def follow_averages(trainer: Any, sparsifier: Sparsifier) -> None:
    """Mask the moving averages of WeightAveraging and StochasticWeightAveraging, found by what they carry."""
    for callback in trainer.callbacks:
        if isinstance(shadow := getattr(callback, "_average_model", None), torch.nn.Module):
            sparsifier.shadow(shadow)
