"""What the masked optimizers share: which weights live, their state, and the way around a step."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.masks import pack_bits
from lightning_sparse.core.values import is_number
from lightning_sparse.optim.places import Places

Group = dict[str, Any]
MOST = 1e15  # of an option: products and quotients of two are still numbers in float32, which torch insists on
_MASK = "mask"  # in the state of a weight: its packed mask; no such entry while all of it lives


class MaskedOptimizer(Optimizer):
    """Base of optimizers that keep state and do work for live weights only.

    A weight with a mask has state tensors of shape ``(live,)`` and its packed mask (a bit a weight) beside them, so
    that a saved state needs nothing else. A step gathers weight and gradient where weights live, updates these short
    vectors by torch's own functions, and writes them back; dead weights are neither read nor written. A weight without
    a mask (biases, norms, dense layers) is stepped as torch steps it.

    The engine (``MaskUpdater``, ``Sparsifier``) tells the masks by :meth:`set_mask`. In a loop without it, call that
    once, and after every change of a mask; what is dead has to be zero by your own doing.

    Beside the state, an index of 4 bytes a live weight is held (8 from 2**31 weights on); it is not saved.

    Limits: gradients are dense tensors, as without this; DTensors (FSDP2, tensor parallel) are refused, for a shard
    does not hold what the mask of the whole weight says.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        defaults: the options of groups that do not say otherwise.

    Raises:
        ValueError: on options that cannot be right, all at once.
    """

    per_weight: ClassVar[tuple[str, ...]] = ()  # names of the state tensors that have an entry for each weight

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        # Read through `_place` only, which looks whether an entry is still that of the state. Tensors are their own
        # keys, as in `state`: what is in here cannot die.
        self._places: dict[Tensor, Places] = {}
        super().__init__(params, defaults)

    @abstractmethod
    def problems(self, options: Group) -> list[str]:
        """What is wrong with the options of a group, a sentence each."""

    @abstractmethod
    def update(self, group: Group, params: Sequence[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Step ``weights`` in place.

        Args:
            group: options.
            params: the parameters, whose state it is.
            weights: the same in full, or the 1-D live entries of those that have a mask.
            gradients: like ``weights``.
        """

    def add_param_group(self, param_group: Group) -> None:
        """As torch's, after a look at the options.

        Raises:
            ValueError: on options that cannot be right, all at once.
        """
        raise_problems(self.problems({**self.defaults, **param_group}), type(self).__name__)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every parameter that has a gradient.

        Args:
            closure: makes the gradients anew and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: on sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    @torch.no_grad()
    def set_mask(self, weight: Tensor, mask: Tensor) -> None:
        """From now on exactly the weights under the mask are stepped and have state.

        What lived before keeps its state; what starts to live starts with zeros, and counts on the same steps. The
        mask that is set already changes nothing. A mask that is True everywhere is as good as none: plain dense state.

        Args:
            weight: a parameter in one of the groups.
            mask: bool, the shape of ``weight``, on any device; True where a weight lives.

        Raises:
            ValueError: if the weight is not in a group, or the mask does not fit it.
        """
        raise_problems(self._misfits(weight, mask), f"{type(self).__name__}.set_mask")
        before, row = self._place(weight), self.state.get(weight, {})
        bits = None if bool(mask.all()) else pack_bits(mask)
        if _same(before, bits):
            return
        after = None if bits is None else Places(bits, weight)
        for name in self.per_weight:
            if (value := row.get(name)) is not None:
                full = value if before is None else before.spread(value, like=weight)
                row[name] = full if after is None else after.take(full)
        row.pop(_MASK, None)
        self._places.pop(weight, None)
        if after is not None:
            row[_MASK] = after.bits
            self._places[weight] = after
        self.state[weight] = row

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After pickle, deepcopy and ``load_state_dict``, which casts the packed masks to the dtype of the weights."""
        super().__setstate__(state)
        self._places = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)  # the state of an older or another optimizer, such as torch's own
        for row in self.state.values():
            if _MASK in row:
                row[_MASK] = row[_MASK].to("cpu", torch.uint8)  # exact: every float type holds 0 ... 255

    def _step_group(self, group: Group) -> None:
        params = [weight for weight in group["params"] if weight.grad is not None]
        if any(weight.grad.is_sparse for weight in params):
            raise RuntimeError(
                f"{type(self).__name__} is for sparse weights, and takes dense gradients only; for sparse gradients "
                "(Embedding(sparse=True)) give these parameters to torch.optim.SparseAdam or SGD"
            )
        places = [self._place(weight) for weight in params]
        pairs = list(zip(params, places, strict=True))
        weights = [weight if at is None else at.take(weight) for weight, at in pairs]
        gradients = [weight.grad if at is None else at.take(weight.grad) for weight, at in pairs]
        self.update(group, params, weights, gradients)
        for (weight, at), value in zip(pairs, weights, strict=True):
            if at is not None:
                at.put(weight, value)

    def _place(self, weight: Tensor) -> Places | None:
        """Where the weight lives; None when it has no mask."""
        bits = self.state[weight].get(_MASK) if weight in self.state else None
        if bits is None:
            return None
        at = self._places.get(weight)
        if at is None or at.bits is not bits or at.index.device != weight.device:  # loaded, rewound or moved since
            at = self._places[weight] = Places(bits, weight)
        return at

    def _misfits(self, weight: Tensor, mask: Tensor) -> list[str]:
        name, found = f"the weight of shape {list(weight.shape)}", []
        if not any(weight is known for group in self.param_groups for known in group["params"]):
            found.append(f"{name} is in no parameter group of this optimizer; give it to the optimizer first")
        if hasattr(weight, "full_tensor"):
            found.append(f"{name} is a DTensor; use torch's optimizer for distributed weights")
        if mask.dtype != torch.bool:
            found.append(f"a mask is a bool tensor, got {mask.dtype}; mask.bool() makes one")
        if mask.shape != weight.shape:
            found.append(f"{name} got a mask of shape {list(mask.shape)}")
        return found


def zeros(weight: Tensor) -> Tensor:
    """State for a weight, in full or of the live entries."""
    return torch.zeros_like(weight, memory_format=torch.preserve_format, requires_grad=False)


def negative(options: Group, *names: str) -> list[str]:
    """A sentence for each option of these names that is no number from 0 to 1e15; a learning rate may be a tensor."""
    given = {name: options[name] for name in names}
    values = {n: v.item() if n == "lr" and isinstance(v, Tensor) and v.numel() == 1 else v for n, v in given.items()}
    fine = {name for name, value in values.items() if is_number(value) and value >= 0}
    found = [f"{name} must be >= 0, got {value!r}" for name, value in given.items() if name not in fine]
    large = {name: given[name] for name in given if name in fine and values[name] > MOST}
    return found + [f"{name} must be at most {MOST:g}, got {value!r}" for name, value in large.items()]


def no_flags(options: Group, *names: str) -> list[str]:
    """A sentence for each option of these names that is not True or False."""
    found = [name for name in names if not isinstance(options[name], bool)]
    return [f"{name} must be True or False, got {options[name]!r}" for name in found]


def _same(before: Places | None, bits: Tensor | None) -> bool:
    if before is None or bits is None:
        return before is None and bits is None
    return torch.equal(before.bits.cpu(), bits)
