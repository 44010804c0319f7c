"""A saved state of training to go back to: the weights and optimizer state of an early step."""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.optstate import carry_state, forget
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.select import clean
from lightning_sparse.core.surgery import Cuts, taken


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


class _Before:
    """The gradients of an optimizer at a moment, to tell whether its next step is by them.

    Clipping and masking write into gradients; only a backward pass, or another tensor, makes new ones.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._pairs = [(w, w.grad) for w in _weights(optimizer) if w.grad is not None]
        self._renewed = False
        self._handles = [_told(weight, self._note) for weight, _ in self._pairs]

    def still(self) -> bool:
        """Whether there were gradients, and they are those of now."""
        return bool(self._pairs) and not self._renewed and all(weight.grad is g for weight, g in self._pairs)

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, weight: Tensor) -> None:
        self._renewed = True


class Rewinder:
    """Saves what an algorithm wants to go back to, and goes back; one saved state for each optimizer.

    Optimizers without a sparse weight go back with those that have some. One that steps after them, by gradients from
    before, is saved or goes back once more after its step.

    Attributes:
        count: how often training went back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved: dict[str, Rewind] = {}  # by the first sparse parameter of the optimizer
        self._step: int | None = None  # whose weights are saved
        self._live: dict[str, int] = {}
        self._idle: list[Callable[[], Optimizer | None]] = []  # optimizers without a sparse weight
        self._late: dict[str, tuple[bool, _Before]] = {}  # whether back, and gradients then
        self.count = 0

    def start(
        self, optimizer: Optimizer, owned: Sequence[SparseParam], algorithm: Algorithm, steps: Mapping[str, int]
    ) -> None:
        """An optimizer is about to be followed: keep the first weights, if these are what is wanted."""
        if any(held() is optimizer for held in self._idle):
            return
        if owned:
            name, first = owned[0].name, steps[owned[0].name] == 0
            self._live[name] = sum(p.live for p in owned)
        else:
            self._idle.append(weakref.ref(optimizer))
            name, first = f"#{len(self._idle)}", max(steps.values()) == 0
        if algorithm.rewind_step == 0 and name not in self._saved and first:
            self._saved[name], self._step = save(optimizer, self._model), 0

    @torch.no_grad()
    def step(
        self, optimizer: Optimizer, owned: Sequence[SparseParam], algorithm: Algorithm, step: int
    ) -> list[Optimizer]:
        """Optimizer step ``step`` has happened, and masks have moved.

        Returns:
            The optimizers whose weights went back.
        """
        if algorithm.rewind_step is None:
            return []
        if not owned:
            return self._catch_up(optimizer)
        name, live = owned[0].name, sum(p.live for p in owned)
        idle = {f"#{i}": other for i, held in enumerate(self._idle, start=1) if (other := held()) is not None}
        together = {name: optimizer, **idle}
        if algorithm.rewind_step == step:
            self._saved |= {key: save(other, self._model) for key, other in together.items()}
            self._step = step
            self._look(idle, back=False)
        if not algorithm.rewinds(step) or live >= self._live[name]:  # nothing was pruned
            return []
        self._live[name] = live
        for key, other in together.items():
            restore(other, self._model, self._saved[key])
        for p in owned:
            carry_state(optimizer, p, p.mask)
        forget(optimizer)
        self._look(idle, back=True)
        self.count += 1
        return list(together.values())

    def _catch_up(self, optimizer: Optimizer) -> list[Optimizer]:
        """An optimizer without sparse weights has stepped: was it by gradients from before?"""
        key = next(f"#{i}" for i, held in enumerate(self._idle, start=1) if held() is optimizer)
        if key not in self._late:
            return []
        back, before = self._late.pop(key)
        before.remove()
        if not before.still():
            return []
        if not back:
            self._saved[key] = save(optimizer, self._model)
            return []
        restore(optimizer, self._model, self._saved[key])
        return [optimizer]

    def _look(self, idle: Mapping[str, Optimizer], back: bool) -> None:
        self.rest()
        self._late = {key: (back, _Before(optimizer)) for key, optimizer in idle.items()}

    def rest(self) -> None:
        """Optimizers are let go of: nothing is late any more."""
        for _, before in self._late.values():
            before.remove()
        self._late = {}

    def forget(self) -> None:
        """Another run begins: it has a start of its own."""
        self.rest()
        self._saved, self._step, self._idle = {}, None, []

    def resize(self, cuts: Cuts, optimizers: Iterable[Optimizer]) -> None:
        """Channels were cut out of the model: what is saved loses the same.

        Args:
            cuts: indices that stay, by parameter and dimension.
            optimizers: those of the run.
        """
        names = {id(weight): clean(name) for name, weight in self._model.named_parameters()}
        idle = {f"#{i}": other for i, held in enumerate(self._idle, start=1) if (other := held()) is not None}
        stepping = {names.get(id(weight), ""): other for other in optimizers for weight in _weights(other)} | idle
        for key, saved in self._saved.items():
            rows = [cuts.get(names.get(id(weight), ""), {}) for weight in _weights(stepping[key])]
            shapes = [value.shape for value in saved.values]
            values = [taken(v, dims, v.shape) for v, dims in zip(saved.values, rows, strict=True)]
            state = {
                i: {k: taken(v, rows[i], shapes[i]) if isinstance(v, Tensor) else v for k, v in row.items()}
                for i, row in saved.state.items()
            }
            buffers = {name: taken(v, cuts.get(clean(name), {}), v.shape) for name, v in saved.buffers.items()}
            self._saved[key] = Rewind(values, state, buffers)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers; empty where nothing is kept."""
        saved = {name: kept._asdict() for name, kept in self._saved.items()}
        return {"count": self.count, "saved": saved, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any], algorithm: Algorithm, steps: Mapping[str, int]) -> None:
        """Go on from a checkpoint. Where another step is wanted than the saved one, it must be still to come.

        Raises:
            ValueError: if training is to go back to weights that the checkpoint does not have.
        """
        saved, step, done = state.get("saved", {}), algorithm.rewind_step, max(steps.values())
        held = state.get("step", step) if saved else None
        if step is not None and held != step and done >= step and done > 0:
            others = "" if held is None else f" (it holds those of step {held})"
            raise ValueError(
                f"{algorithm} rewinds to step {step}, whose weights this checkpoint does not hold{others}; start the "
                "run anew, or give rewind=None"
            )
        self._saved = {name: Rewind(**kept) for name, kept in saved.items()} if held == step else {}
        self._step, self.count = held if held == step else None, state.get("count", 0)


def _told(weight: Tensor, note: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
    return handle


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
