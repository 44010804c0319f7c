"""Which layers are faster without their zeros: measured, and measured again when their density is another."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_sparse.callbacks.base import rank_zero_info
from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.measure import Input, Timing, measure, seen
from lightning_sparse.core.forward import Peek
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.plan import table
from lightning_sparse.core.sharded import is_distributed


class Choice:
    """Waits for the input of each layer, measures, and remembers at which density.

    All processes take what the first one has measured.
    """

    def __init__(self) -> None:
        self._inputs: dict[str, Input] = {}
        self._measured: dict[str, float] = {}  # densities
        self._handles: dict[str, Any] = {}

    def watch(self, params: Sequence[SparseParam]) -> None:
        """Layers that have a form without zeros."""
        for p in params:
            self._measured[p.name] = 0.0  # of which any density is a multiple
            self._handles[p.name] = p.place.module.register_forward_pre_hook(Peek(partial(self._note, p.name)))

    def close(self) -> None:
        """Leave no hook behind."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def look(self, name: str, trainer: Any, params: Mapping[str, SparseParam]) -> dict[str, bool]:
        """Whether layers that have not been measured at about this density are faster without zeros.

        Args:
            name: of the callback.
            trainer: for its processes.
            params: by name.
        """
        shares = {key: params[key].live / params[key].size for key in self._measured}
        due = [key for key, was in self._measured.items() if not was / 2 < shares[key] < was * 2]
        if not due:
            return {}
        known = [key for key in due if key in self._inputs and trainer.global_rank == 0]
        timings = _of_the_first({key: _timed(params[key], self._inputs[key]) for key in known})
        self._measured |= {key: shares[key] for key in timings}
        for key in timings:
            if key in self._handles:
                self._handles.pop(key).remove()
        if timings:
            rank_zero_info(_told(name, timings, shares))
        return {key: timing.sparse < timing.dense for key, timing in timings.items()}

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and torch.is_grad_enabled():
            self._inputs[name] = seen(args[0])


def _timed(p: SparseParam, given: Input) -> Timing:
    module = p.place.module
    dense = module.to_dense() if isinstance(module, SparseLayer) else module
    return measure(dense, p.mask, given)


def _of_the_first(timings: dict[str, Timing]) -> dict[str, Timing]:
    if not is_distributed():
        return timings
    told: list[Any] = [timings]
    torch.distributed.broadcast_object_list(told, 0)
    return told[0]  # type: ignore[no-any-return]


def _told(name: str, timings: Mapping[str, Timing], shares: Mapping[str, float]) -> str:
    cells = [("layer", "density", "dense ms", "sparse ms", "computed")]
    for key, (dense, sparse) in timings.items():
        way = "sparse" if sparse < dense else "dense"
        cells.append((key, f"{shares[key]:.4f}", f"{dense * 1e3:.3f}", f"{sparse * 1e3:.3f}", way))
    return f"{name}: forward and backward pass of each layer, measured here\n{table(cells)}"
