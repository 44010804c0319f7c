"""A saved state of training to go back to: the weights and optimizer state of an early step."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.optstate import carry_state, forget
from lightning_sparse.core.param import SparseParam


class Rewind(NamedTuple):
    """What one optimizer steps, and what it remembers, as of one step.

    Attributes:
        values: of every parameter in its groups, in their order.
        state: of the optimizer, by the parameter's position.
        buffers: of the whole model (running statistics), by name.
    """

    values: list[Tensor]
    state: dict[int, dict[str, Any]]
    buffers: dict[str, Tensor]


def save(optimizer: Optimizer, model: nn.Module) -> Rewind:
    """Copy what training has to go back to.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> start, before = save(optimizer, net), net.weight.clone()
        >>> net.weight.grad = torch.ones(2, 2)
        >>> optimizer.step()
        >>> restore(optimizer, net, start)
        >>> torch.equal(net.weight, before)
        True
    """
    weights = _weights(optimizer)
    state = {i: _copy(optimizer.state[w]) for i, w in enumerate(weights) if w in optimizer.state}
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    return Rewind([w.detach().clone() for w in weights], state, buffers)


@torch.no_grad()
def restore(optimizer: Optimizer, model: nn.Module, saved: Rewind) -> None:
    """Go back, in place; learning rates and what is not a tensor of the optimizer's state stay.

    Raises:
        ValueError: if the optimizer holds other parameters than it held then.
    """
    weights = _weights(optimizer)
    if [w.shape for w in weights] != [value.shape for value in saved.values]:
        raise ValueError(
            "cannot rewind: the optimizer holds other parameters than at the step to go back to (was a layer unfrozen "
            "meanwhile?); leave rewind=None"
        )
    for i, (weight, value) in enumerate(zip(weights, saved.values, strict=True)):
        weight.copy_(value)
        optimizer.state.pop(weight, None)
        if i in saved.state:
            optimizer.state[weight] = _copy(saved.state[i], weight.device)
    named = dict(model.named_buffers())
    for name, value in saved.buffers.items():
        named[name].copy_(value)


def pack(saved: Rewind) -> dict[str, Any]:
    """Tensors and plain containers, for a checkpoint."""
    return {"values": list(saved.values), "state": dict(saved.state), "buffers": dict(saved.buffers)}


def unpack(state: Mapping[str, Any]) -> Rewind:
    """What :func:`pack` wrote."""
    return Rewind(list(state["values"]), dict(state["state"]), dict(state["buffers"]))


class Rewinder:
    """Saves what an algorithm wants to go back to, and goes back; one saved state for each optimizer.

    Attributes:
        count: how often training went back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved: dict[str, Rewind] = {}  # by the first sparse parameter of the optimizer
        self._live: dict[str, int] = {}
        self._idle: list[Callable[[], Optimizer | None]] = []  # optimizers without a sparse weight: they go back too
        self.count = 0

    def start(
        self, optimizer: Optimizer, owned: Sequence[SparseParam], algorithm: Algorithm, steps: Mapping[str, int]
    ) -> None:
        """An optimizer is about to be followed: keep the first weights, if these are what is wanted."""
        if any(held() is optimizer for held in self._idle):
            return
        if not owned:
            self._idle.append(weakref.ref(optimizer))
            if algorithm.rewind_step == 0 and max(steps.values()) == 0:
                self._saved.setdefault(f"#{len(self._idle)}", save(optimizer, self._model))
            return
        name = owned[0].name
        self._live[name] = sum(p.live for p in owned)
        if algorithm.rewind_step == 0 and name not in self._saved and steps[name] == 0:
            self._saved[name] = save(optimizer, self._model)

    @torch.no_grad()
    def step(self, optimizer: Optimizer, owned: Sequence[SparseParam], algorithm: Algorithm, step: int) -> None:
        """Optimizer step ``step`` has happened, and masks have moved."""
        if not owned or algorithm.rewind_step is None:
            return
        name, live = owned[0].name, sum(p.live for p in owned)
        idle = [(f"#{i}", other) for i, held in enumerate(self._idle, start=1) if (other := held()) is not None]
        if algorithm.rewind_step == step:
            self._saved |= {key: save(other, self._model) for key, other in [(name, optimizer), *idle]}
        if algorithm.rewinds(step) and live < self._live[name]:  # not where nothing was pruned
            self._live[name] = live
            for key, other in [(name, optimizer), *idle]:
                restore(other, self._model, self._saved[key])
            for p in owned:
                carry_state(optimizer, p, p.mask)
            forget(optimizer)
            self.count += 1

    def forget(self) -> None:
        """Another run begins: it has a start of its own."""
        self._saved, self._idle = {}, []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers; empty where nothing is kept."""
        return {"count": self.count, "saved": {name: pack(kept) for name, kept in self._saved.items()}}

    def load_state_dict(self, state: Mapping[str, Any], algorithm: Algorithm, steps: Mapping[str, int]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if training is to go back to weights that the checkpoint does not have.
        """
        saved, step = state.get("saved", {}), algorithm.rewind_step
        if step is not None and not saved and max(steps.values()) >= step and max(steps.values()) > 0:
            raise ValueError(
                f"{algorithm} rewinds to step {step}, whose weights this checkpoint does not hold; start the run anew, "
                "or give rewind=None"
            )
        self._saved, self.count = {name: unpack(kept) for name, kept in saved.items()}, state.get("count", 0)


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _copy(state: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """Steps stay where they are: torch keeps them on the CPU."""
    return {
        key: (value.clone() if device is None or value.ndim == 0 else value.to(device, copy=True))
        if isinstance(value, Tensor)
        else copy.deepcopy(value)
        for key, value in state.items()
    }
