"""A copy of the model to take gradients in, so that looking leaves no trace."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.random_state import load_random_state, save_random_state
from lightning_sparse.core.select import clean
from lightning_sparse.core.sharded import is_distributed

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
Loss = Callable[[nn.Module, Any], Tensor]


@runtime_checkable
class PreparesCopy(Protocol):
    """A loss that knows what a copy of the model lacks, such as its Trainer."""

    def prepare_copy(self, model: nn.Module) -> None:
        """Called once with the copy, before it is used."""


class Probe:
    """What algorithms that choose masks by data may use: a copy of the model, batches, and a loss.

    The model itself is not touched: neither its weights and gradients, nor running statistics, metrics or modes. What
    the copy draws from random states is put back.

    Args:
        model: is copied.
        batches: to draw from, in order; an iterable that can be begun again at any time.
        loss: of a model and a batch: a scalar with a graph; may be a :class:`PreparesCopy`.
        example_inputs: what ``model(...)`` takes: a tensor, a tuple of arguments or a dict of keyword arguments.

    Attributes:
        model: the copy.
        example_inputs: as given.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> probe = Probe(net, [torch.ones(4, 3)], lambda model, batch: model(batch).sum())
        >>> weight = probe.weights(["weight"])["weight"]
        >>> torch.autograd.grad(probe.loss(next(probe.batches())), weight)[0].tolist()
        [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
        >>> net.weight.grad is None and weight is not net.weight
        True
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        example_inputs: Any = None,
    ) -> None:
        try:
            self.model = copy.deepcopy(model)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the model cannot be copied to take gradients in ({error}); give its attributes that cannot be copied "
                "a __deepcopy__, or choose another algorithm"
            ) from error
        own_steps(self.model)
        if isinstance(loss, PreparesCopy):
            loss.prepare_copy(self.model)
        self._batches, self._loss, self.example_inputs = batches, loss, example_inputs

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Parameters of the copy, by name."""
        found = {clean(name): value for name, value in self.model.named_parameters(remove_duplicate=False)}
        return {name: found[name] for name in names}

    def batches(self) -> Iterator[Any]:
        """The batches, from the first."""
        return iter(() if self._batches is None else self._batches)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch; modules are in the modes that the user has left them in.

        Raises:
            ValueError: if it has no graph to differentiate.
        """
        assert self._loss is not None, "checked before"
        with torch.enable_grad():
            loss = self._loss(self.model, batch)
        if not isinstance(loss, Tensor) or not loss.requires_grad or loss.numel() != 1:
            raise ValueError(
                f"the loss of a batch must be a scalar tensor that can be differentiated, got {type(loss).__name__}"
            )
        return loss

    @staticmethod
    def mean(scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Averaged over all ranks, so that they choose alike."""
        if is_distributed():
            for value in scores.values():
                torch.distributed.all_reduce(value.div_(torch.distributed.get_world_size()))
        return scores


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode inside, and each module in its own mode afterwards.

    Example:
        >>> model = nn.Dropout()
        >>> with eval_mode(model):
        ...     assert not model.training
        >>> model.training
        True
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def own_steps(copied: nn.Module) -> None:
    """Let the copy of a LightningModule run its own steps: those that Lightning compiled are the original's."""
    if getattr(copied, "_compiler_ctx", None) is not None:
        copied.__dict__["_compiler_ctx"] = None
        for name in _STEPS:
            copied.__dict__.pop(name, None)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Random states are afterwards as before.

    Example:
        >>> before = torch.get_rng_state()
        >>> with untouched_randomness():
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    state = save_random_state()
    try:
        yield
    finally:
        load_random_state(state)


def unprepared(asks: str, batches: Any, loss: Any, example_inputs: Any) -> str:
    """What an algorithm that ``asks`` for data lacks, and the way out; empty when all is well.

    Example:
        >>> unprepared("loss", None, None, None)
        'it takes gradients before training: give batches= and loss= (a function of model and batch)'
    """
    if asks == "loss" and (batches is None or loss is None):
        return "it takes gradients before training: give batches= and loss= (a function of model and batch)"
    if asks == "inputs" and example_inputs is None:
        return "it needs the shape of an input: give example_inputs=, or the model an example_input_array"
    return ""


def first_masks(algorithm: Any, params: Sequence[SparseParam], probe: Callable[[], Probe]) -> dict[str, Tensor]:
    """The first masks of any algorithm; ``probe`` is made only for one that asks."""
    if algorithm.asks == "nothing":
        return dict(algorithm.init(params))
    with untouched_randomness():
        torch.manual_seed(params[0].seed)  # the same on every rank
        return dict(algorithm.init_from(params, probe()))
