"""The gradients of one optimizer's sparse parameters: kept dense for the algorithm, then masked for the step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sparse.core.compact import Compact
from lightning_sparse.core.masks import clear
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.sharded import agree, is_distributed, local

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class Gradients:
    """Knows which gradients were masked already, so that staging a step twice changes nothing."""

    def __init__(self) -> None:
        self._masked: dict[str, tuple[Tensor, int]] = {}  # gradients that were masked, and their version then
        self._taken: set[str] = set()  # dense gradients that came from layers without zeros

    def keep(self, params: Sequence[SparseParam]) -> None:
        """Copy what is dense, before it is masked."""
        for p in params:
            gradient = p.place.weight.grad
            if p.compact is not None:
                self._take(p, p.compact)
                continue
            if self._is_masked(p):
                continue  # staged before: it is not dense any more
            if gradient is None or p.dense_grad is None or p.dense_grad.dtype != gradient.dtype:
                p.dense_grad = None if gradient is None else gradient.detach().clone()
            else:
                p.dense_grad.copy_(gradient)

    def mask(self, params: Sequence[SparseParam]) -> None:
        """Zero the gradients of dead weights."""
        with_zeros = [p for p in params if p.compact is None and p.place.weight.grad is not None]
        todo = [p for p in with_zeros if not self._is_masked(p)]
        gradients = [p.place.weight.grad for p in todo if p.place.weight.grad is not None]
        clear(gradients, [p.bits_for(g) for p, g in zip(todo, gradients, strict=True)])
        self._masked |= {p.name: (g, local(g)._version) for p, g in zip(todo, gradients, strict=True)}

    def forget(self) -> None:
        """The step is over."""
        self._masked = {}
        self.reopen()

    def reopen(self) -> None:
        """Another closure of the step: its gradients are new."""
        self._taken.clear()

    def _take(self, p: SparseParam, layer: Compact) -> None:
        """What the backward passes of a layer without zeros have left since the last step."""
        found, layer.dense_grad = layer.dense_grad, None
        gradient = layer.values.grad
        if found is None and layer.capture and gradient is not None and p.name not in self._taken:
            if not layer.averaged and bool(gradient.any()):
                raise RuntimeError(
                    f"{p.name} has a gradient, but the dense one, which masks grow by, is unknown: it did not come by "
                    'calling the layer and backward() (vmap and autograd.grad hide that). Give compute="dense"'
                )
            found = torch.zeros(layer.shape, dtype=layer.values.dtype)  # other processes have used it, or none
        if found is not None:
            if layer.averaged and is_distributed():
                torch.distributed.all_reduce(found.div_(torch.distributed.get_world_size()))
            more = p.dense_grad if p.name in self._taken else None  # a backward pass after the first look
            p.dense_grad = found if more is None else more + found
            self._taken.add(p.name)

    def _is_masked(self, p: SparseParam) -> bool:
        """Whether this gradient was masked already, and nothing was added since."""
        masked, version = self._masked.get(p.name, (None, 0))
        return masked is not None and masked is p.place.weight.grad and local(masked)._version == version


def refuse_sparse(params: Sequence[SparseParam]) -> None:
    """Gradients must have an entry for each weight.

    Raises:
        ValueError: naming the parameters whose gradients hold the rows that were looked up, and no others.
    """
    gradients = [(p.name, p.place.weight.grad) for p in params]
    if rows := [name for name, g in gradients if g is not None and local(g).layout != torch.strided]:
        raise ValueError(
            f"sparse gradients, which no mask fits, came for {', '.join(rows)}; look rows up with sparse=False, or "
            f"leave the weights dense with exclude={rows}"
        )


def unscale(params: Sequence[SparseParam], scale: Tensor | None) -> None:
    """Divide what was kept by a gradient scaler's factor, where it still carries one."""
    if scale is not None:
        for p in params:
            if p.dense_grad is not None:
                local(p.dense_grad).div_(scale)


def shown(params: Sequence[SparseParam], step: int) -> list[SparseParam]:
    """Parameters with a gradient, if all of these are finite, on every process; told what step it is."""
    held = [p.dense_grad for p in params]
    finite = all(_finite(local(gradient)) for gradient in held if gradient is not None)
    *there, finite = agree([*(g is not None for g in held), finite], [p.place.weight for p in params])
    found = [p for p, is_there in zip(params, there, strict=True) if is_there]
    for p in found:
        p.step = step
    return found if finite else []


def _finite(gradient: Tensor) -> bool:
    # a sum is ten times faster than a look at every entry; float16 would overflow in it
    return bool(torch.isfinite(gradient.sum(dtype=_WIDE.get(gradient.dtype))))
