"""What a Trainer knows of its run: the strategy, the length, the random states."""

from math import ceil, isfinite
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info
from lightning_sparse.core.random_state import load_random_state, save_random_state
from lightning_sparse.core.sharded import is_distributed
from lightning_sparse.core.sparsifier import Sparsifier

_REFUSED = {
    "FSDPStrategy": "it flattens and shards parameters",
    "DeepSpeedStrategy": "it steps hidden copies of the weights",
}
_SHARED = {"ModelParallelStrategy": "it cannot work on parameters that processes share"}


# Data fetchers of fits that go on (Lightning makes one for each), where random states are back and loops are mended.
_RESTORED: WeakSet[Any] = WeakSet()
_MENDED: WeakSet[Any] = WeakSet()


def refuse_strategy(trainer: Any, callback: str, shares: bool = False) -> None:
    """Stop before training starts under a strategy that the callback cannot work with.

    Args:
        trainer: about to train.
        callback: its name.
        shares: whether it can work on parameters that processes share (FSDP2, tensor parallel).

    Raises:
        MisconfigurationException: with the way out.
    """
    refused, way_out = (_REFUSED, ", ModelParallelStrategy (FSDP2)") if shares else (_REFUSED | _SHARED, "")
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in refused:
            raise MisconfigurationException(
                f"{callback} does not work with {kind.__name__}: {refused[kind.__name__]}. "
                f'Use Trainer(strategy="ddp"){way_out} or a single device.'
            )


def stand_before(trainer: Any, callback: Any, kind: type) -> None:
    """Put a callback before all of a kind, where it is not: Lightning calls them in their order."""
    others = [each for each in trainer.callbacks if each is not callback]
    first = next((i for i, other in enumerate(others) if isinstance(other, kind)), len(others))
    if first < trainer.callbacks.index(callback):
        trainer.callbacks = [*others[:first], callback, *others[first:]]  # a new list: Lightning walks the old one


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
    if alone or not is_distributed():
        return [mine]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, mine)
    return states


def restore_random_states(trainer: Any, states: list[dict[str, Any]]) -> None:
    """Random states as they were when the checkpoint was written; none where another number of ranks wrote it.

    Several callbacks may ask in one fit; the first is heard.
    """
    fetcher = getattr(trainer.fit_loop, "_data_fetcher", None)
    if fetcher is not None and fetcher in _RESTORED:
        return
    if len(states) != trainer.world_size:
        text = f"random states of {len(states)} ranks were saved and {trainer.world_size} run: they are not restored"
        rank_zero_info(text)
        return
    load_random_state(states[trainer.global_rank])
    if fetcher is not None:
        _RESTORED.add(fetcher)


def go_on(trainer: Any, states: list[dict[str, Any]] | None, restore_rng: bool) -> None:
    """In a run that goes on from a checkpoint: random states, if they are wanted, and what Lightning leaves undone."""
    if trainer.ckpt_path is not None and trainer.global_step > 0:
        if states and restore_rng:
            restore_random_states(trainer, states)
        mend_loops(trainer)


def mend_loops(trainer: Any) -> None:
    """What Lightning leaves undone in a run that goes on; random states are restored by now.

    Lightning has made the epoch's iterator, and drawn its seeds from the states of a fresh process. Where the
    checkpoint ended an epoch, the iterator is made again from the right ones (Lightning 2.5.0, which does not know
    ``is_resuming``, does so itself after ``on_train_batch_end``); a stateful loader's would be at its end. But not
    where the run has ended too. In the middle of an epoch it belongs to a stateful loader, which restores itself.

    After a checkpoint from an epoch's last batch the next epoch is not counted as begun, as if it were the same: of the
    checkpoints that follow, a run that goes on from one would train an epoch too much.

    ModelCheckpoint does not know what it saved before: within the first window of accumulated batches it would save the
    same step again, without the gradients so far. Several callbacks may ask in one fit; the first is heard: a stateful
    loader can be begun once.
    """
    loop = trainer.fit_loop
    fetcher, progress = getattr(loop, "_data_fetcher", None), loop.epoch_loop.batch_progress
    if fetcher is not None and fetcher in _MENDED:
        return
    if fetcher is not None:
        _MENDED.add(fetcher)
    mid_batch = progress.current.completed < progress.current.ready  # saved in on_train_batch_end
    ended = progress.is_last_batch and (getattr(loop, "is_resuming", False) or mid_batch)
    if fetcher is not None and ended and not _is_over(trainer):
        iter(fetcher)
        if loop.restarted_mid_epoch:
            loop.reset_restart_stage()
    for callback in trainer.checkpoint_callbacks:
        every = getattr(callback, "_every_n_train_steps", 0)
        if every >= 1 and trainer.global_step % every == 0:
            callback._last_global_step_saved = trainer.global_step


def _is_over(trainer: Any) -> bool:
    """Whether no step is left; ``fit_loop.done`` knows too, but announces it, and will again."""
    loop = trainer.fit_loop
    limits = ((trainer.global_step, loop.max_steps), (loop.epoch_progress.current.processed, loop.max_epochs))
    return any(limit != -1 and done >= limit for done, limit in limits)


def averages(trainer: Any) -> list[nn.Module]:
    """Moving averages of the model that callbacks hold (WeightAveraging, EMA, SWA), each as the model itself.

    They are found by what they carry: older versions of Lightning do not have all of these.
    """
    held = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
    found = [each for each in held if isinstance(each, nn.Module)]
    return [each.module if isinstance(each, torch.optim.swa_utils.AveragedModel) else each for each in found]


def follow_averages(trainer: Any, *sparsifiers: Sparsifier) -> None:
    """Mask the moving averages of the model that callbacks hold."""
    for shadow in averages(trainer):
        for sparsifier in sparsifiers:
            sparsifier.shadow(shadow)
