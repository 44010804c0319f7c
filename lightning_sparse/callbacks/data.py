"""Batches and losses of a Trainer's own model and loader, for algorithms that look at data before training."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.core.algorithm import Algorithm

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class TrainerBatches:
    """The training batches of a Trainer, on its device, drawn from copies of its loaders.

    The loaders themselves are not begun: their position, workers and generators stay as they are. Samples are drawn in
    an order that depends on ``seed`` alone, the same on every rank.

    Args:
        trainer: in a fit, its loaders set up.
        seed: of the order.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self._trainer, self._seed = trainer, seed

    def __iter__(self) -> Iterator[Any]:
        """Begin anew."""
        loaders = self._trainer.train_dataloader
        for batch in _batches(loaders, self._seed):
            converted = self._trainer.precision_plugin.convert_input(batch)
            yield self._trainer.strategy.batch_to_device(converted, dataloader_idx=0)


def _batches(loaders: Any, seed: int) -> Iterator[Any]:
    """Of a loader, or of a dict or list of loaders: then batches in the same structure, until one ends."""
    if isinstance(loaders, dict):
        keys = list(loaders)
        for row in zip(*(_batches(loaders[key], seed) for key in keys), strict=False):
            yield dict(zip(keys, row, strict=True))
    elif isinstance(loaders, list | tuple):
        for row in zip(*(_batches(each, seed) for each in loaders), strict=False):
            yield type(loaders)(row)
    else:
        yield from _fresh(loaders, seed)


def _fresh(loader: Any, seed: int) -> Any:
    """A loader over the same samples that shares no state with ``loader``."""
    if not isinstance(loader, DataLoader):
        if iter(loader) is loader:
            raise MisconfigurationException(
                f"the training data is a {type(loader).__name__} that can be read once only, so there is nothing to "
                "choose masks by; use a DataLoader, or an algorithm that needs no data before training"
            )
        return loader
    how: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 0}
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(_copied(loader.dataset), batch_size=loader.batch_size, drop_last=loader.drop_last, **how)
    generator = torch.Generator().manual_seed(seed)
    if loader.batch_size is not None:
        return DataLoader(loader.dataset, loader.batch_size, shuffle=True, generator=generator, **how)
    if loader.batch_sampler is not None:  # one of the user's own: it decides what goes together
        return DataLoader(loader.dataset, batch_sampler=_copied(loader.batch_sampler), **how)
    return DataLoader(loader.dataset, batch_size=None, shuffle=True, generator=generator, **how)


def _copied(thing: Any) -> Any:
    try:
        return copy.deepcopy(thing)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise MisconfigurationException(
            f"{type(thing).__name__} cannot be copied ({error}), and reading it before training would disturb the run; "
            "give it a __deepcopy__, or use an algorithm that needs no data before training"
        ) from error


def trainer_loss(trainer: Any) -> Callable[[nn.Module, Any], Tensor]:
    """What ``training_step`` of a copy of the LightningModule returns for a batch; nothing is logged."""

    def loss(model: Any, batch: Any) -> Tensor:
        _silence(model, trainer)
        with trainer.precision_plugin.train_step_context():
            output = model.training_step(*_arguments(model, batch))
        value = output["loss"] if isinstance(output, dict) and "loss" in output else output
        if not isinstance(value, Tensor):
            raise MisconfigurationException(
                f"training_step returned {type(value).__name__} for the batch that masks are chosen by, not a loss"
            )
        return value

    return loss


def _arguments(model: Any, batch: Any) -> list[Any]:
    """As Lightning calls it: with a batch index where the signature has room for one."""
    names = inspect.signature(model.training_step).parameters
    return [batch, 0] if "batch_idx" in names or len(names) >= 2 else [batch]


def _silence(model: Any, trainer: Any) -> None:
    """The copy belongs to the same Trainer, logs nothing, and runs as plain Python if the original was compiled."""
    if getattr(model, "_compiler_ctx", None) is not None:  # compiled steps are bound to the original
        for name in _STEPS:
            model.__dict__.pop(name, None)
        model._compiler_ctx = None
    model._trainer = trainer
    for name in ("log", "log_dict"):
        object.__setattr__(model, name, _nothing)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of ``log``."""


def example_inputs(trainer: Any, pl_module: Any, seed: int) -> Any:
    """What the model's ``forward`` takes: its ``example_input_array``, else the inputs of the first batch."""
    given = getattr(pl_module, "example_input_array", None)
    if given is not None:
        return given
    batch = next(iter(TrainerBatches(trainer, seed)), None)
    return batch[0] if isinstance(batch, list | tuple) else batch


def check_start(name: str, algorithm: Algorithm, trainer: Any, pl_module: Any, new: bool) -> None:
    """Stop where there is nothing to choose first masks by, or nothing to rewind to.

    Args:
        name: of the callback.
        algorithm: of the callback.
        trainer: about to train.
        pl_module: what it trains.
        new: whether masks are to be made, not restored.

    Raises:
        MisconfigurationException: with the way out.
    """
    kind = type(algorithm).__name__
    if new and algorithm.asks == "loss" and not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{name}: {kind} asks training_step for a loss before training, and under manual optimization that would "
            "step the optimizers; choose an algorithm that needs no loss (SynFlow, or any of the dynamic ones)"
        )
    if new and algorithm.rewind_step is not None and trainer.global_step > 0:
        raise MisconfigurationException(
            f"{name}: {kind} rewinds to an early state, and this run goes on from step {trainer.global_step} of a "
            "checkpoint that holds none; start the run anew, or give rewind=None"
        )
