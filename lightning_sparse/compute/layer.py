"""What layers that compute only non-zeros have in common: values, their places, and dense names in checkpoints."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_sparse.compute.capture import Capture
from lightning_sparse.compute.topology import Topology, positions, topology
from lightning_sparse.core.compact import followed

INDEX = ("pointer", "column", "turned_pointer", "turned_row", "order")


class Twins(list["SparseLayer"]):
    """Layers of other models; a copy of the model has none."""

    def __deepcopy__(self, memo: Any) -> "Twins":
        return Twins()

    def __reduce__(self) -> Any:
        """Pickles without them."""
        return Twins, ()


class SparseLayer(Capture):
    """A weight by its live entries: ``values``, in the order of the flat dense weight, and buffers that say where.

    ``values`` is an ordinary Parameter, so any optimizer takes it. ``state_dict`` holds ``weight`` in the dense shape,
    with zeros, and no places; loading reads the same. A loaded weight with non-zeros at dead places brings its own
    places: see :meth:`load_dense`.

    Attributes:
        values: Parameter, one number for each live entry.
        bias: Parameter or None.
        shape: of the dense weight.
        capture: whether the next backward passes also compute the dense gradient of the weight and add it to
            ``dense_grad``: for algorithms that grow by it.
        dense_grad: the sum of these gradients, of the dense shape, or None.
    """

    pointer: Tensor
    column: Tensor
    turned_pointer: Tensor
    turned_row: Tensor
    order: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool and of the weight's shape {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        self.shape = weight.shape
        mask = mask.to(weight.device)
        self.values = nn.Parameter(weight.detach()[mask].clone(), requires_grad=weight.requires_grad)
        self.bias = bias
        self.twins: list[SparseLayer] = Twins()  # layers of averages of the model, which move with this one
        self._places: tuple[Tensor, ...] | None = None  # once they are no buffers any more
        found = self._topology(mask)
        for name in INDEX:
            self.register_buffer(name, getattr(found, name), persistent=False)

    @property
    def index(self) -> tuple[Tensor, ...]:
        """The buffers, as the operators take them."""
        if self._places is not None:
            return self._places
        buffers = self._buffers  # attributes of a module take longer than a small layer
        return tuple(cast(Tensor, buffers[name]) for name in INDEX)

    def bind(self) -> "SparseLayer":
        """An engine says what lives from now on.

        The places are no buffers any more: who goes through a model's buffers, to send them to other processes or to
        average them, finds those of the dense model.
        """
        self.bound, self._places = True, self.index
        for name in INDEX:
            self.__dict__[name] = self._buffers.pop(name)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no engine: it takes the places of what it loads."""
        state = super().__getstate__()
        if self._places is not None:
            state["_buffers"] = {**self._buffers, **{name: state.pop(name) for name in INDEX}}
        return {**state, "bound": False, "_places": None}

    @property
    def live(self) -> int:
        """How many entries are live."""
        return self.column.numel()

    def positions(self) -> Tensor:
        """int64 indices of the live entries in the flat dense weight, ascending: the places of ``values``."""
        return positions(self.pointer, self.column, self.shape[0], self.shape[1:].numel())

    @property
    def mask(self) -> Tensor:
        """The live entries as a bool tensor of the dense shape; a new one each time."""
        return self.spread(torch.ones_like(self.values, dtype=torch.bool))

    @property
    def weight(self) -> Tensor:
        """The dense weight, for code that reads it: differentiable, made anew each time, and nothing to write into."""
        return self.watch_weight(self.dense_weight())

    def dense_weight(self) -> Tensor:
        """The weight in its dense shape; differentiable."""
        return self.spread(self.values)

    def of_values(self, dense: Tensor) -> Tensor:
        """The numbers of a dense tensor at the live places: what goes with ``values``."""
        return dense.reshape(-1)[self.positions()]

    def spread(self, values: Tensor) -> Tensor:
        """A dense tensor with these numbers at the live places, and zeros; differentiable."""
        flat = torch.zeros(self.shape.numel(), dtype=values.dtype, device=values.device)
        return flat.index_copy(0, self.positions(), values).view(self.shape)

    @torch.no_grad()
    def move(self, mask: Tensor) -> Tensor:
        """Take other live entries, in place: values that stay live are kept, others start at zero.

        The Parameter stays the same object; its gradient follows; it changes size when the mask has another count.

        Args:
            mask: bool, of the dense shape.

        Returns:
            int64, for each new value the index of the old one, -1 where it is new: what optimizer state has to follow
            (:func:`followed`).

        Raises:
            ValueError: on a mask of another shape or type; nothing is changed then.
        """
        if mask.shape != self.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool {list(self.shape)}, got {mask.dtype} {list(mask.shape)}")
        mask = mask.to(self.values.device)
        old = torch.full((self.shape.numel(),), -1, dtype=torch.int64, device=mask.device)
        old[self.positions()] = torch.arange(self.live, device=mask.device)
        source = old[mask.flatten()]
        for twin in self.twins:
            twin.move(mask)
        self._take(self._topology(mask))
        gradient, self.values.grad = self.values.grad, None
        _put(self.values, followed(self.values, source))
        self.values.grad = None if gradient is None else followed(gradient, source)
        return source

    def _topology(self, mask: Tensor) -> Topology:
        return topology(mask.flatten(1))

    def _take(self, found: Topology) -> None:
        for name in INDEX:
            _put(cast(Tensor, getattr(self, name)), getattr(found, name))

    @torch.no_grad()
    def load_dense(self, weight: Tensor) -> None:
        """Read a dense weight.

        Where all its non-zeros are at live places, these stay. Otherwise its non-zeros are the live places, filled up
        to the former count with places that were live, lowest index first. A layer that is ``bound`` keeps its places.
        """
        if self.bound:
            self.values.copy_(self.of_values(weight.to(self.values.device)))
            return
        nonzero = weight.to(self.values.device) != 0
        mask = self.mask
        if bool((nonzero & ~mask).any()):
            spare = (mask & ~nonzero).flatten().nonzero().flatten()
            keep = spare[: max(0, self.live - int(nonzero.sum()))]
            nonzero.view(-1)[keep] = True
            self.move(nonzero)
        self.values.copy_(self.of_values(weight.to(self.values.device)))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        values = destination.pop(f"{prefix}values")
        bias = destination.pop(f"{prefix}bias", None)
        destination[f"{prefix}weight"] = self.spread(values)
        if bias is not None:
            destination[f"{prefix}bias"] = bias

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = dict(state_dict)
        key = f"{prefix}weight"
        weight = rest.pop(key, None)
        rest[f"{prefix}values"] = self.values  # what is there already: nothing to do for the rest of torch
        super()._load_from_state_dict(
            rest, prefix, dict(local_metadata), strict, missing_keys, unexpected_keys, error_msgs
        )
        if strict and f"{prefix}values" in state_dict:
            unexpected_keys.append(f"{prefix}values")
        if weight is None:
            if strict:
                missing_keys.append(key)
        elif weight.shape != self.shape:
            error_msgs.append(f"size mismatch for {key}: {list(weight.shape)} given, {list(self.shape)} expected")
        else:
            self.load_dense(weight)

    def to_dense(self) -> nn.Module:
        """The dense module, with zeros; it shares the bias."""
        raise NotImplementedError


def _put(tensor: Tensor, content: Tensor) -> None:
    """Content into a tensor that stays the same object, of another size if need be."""
    with torch.no_grad():
        if tensor.shape == content.shape:
            tensor.copy_(content)
        else:
            tensor.set_(content.to(tensor.dtype))  # type: ignore[call-overload]  # the stubs know storages only
