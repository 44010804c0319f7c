"""Batches and losses of a Trainer's own model and loader, for algorithms that look at data before training."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from lightning_sparse.callbacks.base import DummyLogger, MisconfigurationException
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.probe import untouched_randomness


class TrainerBatches:
    """The training batches of a Trainer, on its device, drawn from copies of its loaders.

    The loaders themselves are not begun: their position, workers and generators stay as they are. Samples are drawn in
    an order that depends on the seed alone, the same on every rank; a sampler of the user's own decides itself, in a
    copy.

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
            yield self.moved(batch)

    def moved(self, batch: Any) -> Any:
        """A batch, or what a model has as an example of one, as Lightning hands it to the model."""
        converted = self._trainer.precision_plugin.convert_input(batch)
        converted = self._trainer.lightning_module._on_before_batch_transfer(converted, dataloader_idx=0)
        return self._trainer.strategy.batch_to_device(converted, dataloader_idx=0)


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
        return _copied(loader)
    dataset = _copied(loader.dataset, needed=isinstance(loader.dataset, IterableDataset))
    how: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 0}
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **how)
    if loader.batch_size is None and loader.batch_sampler is not None:  # the user's own: it decides what goes together
        return DataLoader(dataset, batch_sampler=_copied(loader.batch_sampler), **how)
    own = loader.sampler
    injected = isinstance(own, DistributedSampler) and own.dataset is loader.dataset
    if type(own) in (RandomSampler, SequentialSampler) or injected or type(own).__module__.startswith("torchdata."):
        order = torch.Generator().manual_seed(seed)
        shuffled = _shuffled(dataset if injected else own, order)
        return DataLoader(dataset, batch_size=loader.batch_size, sampler=shuffled, generator=order, **how)
    return DataLoader(dataset, batch_size=loader.batch_size, sampler=_for_one(_copied(own)), **how)


def _shuffled(own: Any, order: torch.Generator) -> RandomSampler:
    """What torch's own sampler draws from, which may be a part of the data or more than it, in another order."""
    if isinstance(own, RandomSampler):
        return RandomSampler(own.data_source, own.replacement, own.num_samples, order)
    return RandomSampler(own.data_source if isinstance(own, SequentialSampler) else own, generator=order)


def _for_one(sampler: Any) -> Any:
    """A sampler of the user's own, for all ranks together."""
    if isinstance(sampler, DistributedSampler):
        sampler.num_replicas, sampler.rank = 1, 0
        sampler.num_samples = sampler.total_size = len(sampler.dataset)  # type: ignore[arg-type]  # sized
    return sampler


def _copied(thing: Any, needed: bool = True) -> Any:
    """A copy that shares tensors and arrays; where it is not ``needed``, the thing itself if it cannot be copied."""
    try:
        return copy.deepcopy(thing, {id(value): value for value in _large(thing)})
    except Exception as error:
        if not needed:
            return thing
        raise MisconfigurationException(
            f"{type(thing).__name__} cannot be copied ({error}), and reading it before training would disturb the run; "
            "give it a __deepcopy__, or use an algorithm that needs no data before training"
        ) from error


def _large(thing: Any, depth: int = 4) -> Iterator[Any]:
    """Tensors and arrays in a data set and in what it is made of."""
    if hasattr(thing, "nbytes"):
        yield thing
    elif depth:
        parts = thing if isinstance(thing, list | tuple) else list(getattr(thing, "__dict__", {}).values())
        for part in parts[:100]:
            yield from _large(part, depth - 1)


class TrainerLoss:
    """What ``training_step`` of a copy of the LightningModule returns for a batch; nothing is logged."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def prepare_copy(self, model: nn.Module) -> None:
        """The copy, and the LightningModules in it, belong to the same Trainer and log nothing."""
        for module in model.modules():
            if hasattr(module, "_trainer"):
                object.__setattr__(module, "_trainer", _Quiet(self._trainer))
                for name in ("log", "log_dict"):
                    object.__setattr__(module, name, _nothing)

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The loss of the batch.

        Raises:
            MisconfigurationException: if the step returns something else.
        """
        with self._trainer.precision_plugin.train_step_context():
            output = model.training_step(*step_arguments(model, batch))
        value = output["loss"] if isinstance(output, dict) and "loss" in output else output
        if not isinstance(value, Tensor):
            raise MisconfigurationException(
                f"training_step returned {type(value).__name__} for the batch that masks are chosen by, not a loss"
            )
        return value


def step_arguments(model: Any, batch: Any) -> list[Any]:
    """As Lightning calls it: with a batch index where the signature has room for one."""
    parameters = inspect.signature(model.training_step).parameters
    room = len(parameters) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return [batch, 0] if "batch_idx" in parameters or room else [batch]


class _Quiet:
    """A Trainer whose loggers keep nothing."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of ``log``."""


def example_inputs(trainer: Any, pl_module: Any, seed: int) -> Any:
    """What the model's ``forward`` takes: its ``example_input_array``, else the inputs of the first batch.

    The example goes through the model's transfer hooks, as in Lightning's own summary of the model.
    """
    given = getattr(pl_module, "example_input_array", None)
    if given is not None:
        moved = TrainerBatches(trainer, seed).moved(given)
        return tuple(moved) if isinstance(moved, list) else moved
    with untouched_randomness():
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
