"""Sums, means and the like over dimensions; order and numbers of elements."""

from typing import Any

from lightning_sparse.channels.flow import Flow
from lightning_sparse.channels.rules.pointwise import pointwise
from lightning_sparse.channels.rules.registry import NoRule, Op, dims_of, rule, zeros_stay

_SUMS = frozenset(("sum", "nansum", "linalg_vector_norm", "norm", "any", "count_nonzero"))
_REDUCTIONS = "mean nanmean amax amin var std prod logsumexp all var_mean std_mean aminmax " + " ".join(sorted(_SUMS))


def _dims(op: Op) -> list[int]:
    return dims_of(op.get("dim", "dims"), op.x.ndim)


@rule(*_REDUCTIONS.split())
def reduction(flow: Flow, op: Op) -> None:
    """Dimensions go, or shrink to 1."""
    labels, dims = flow.of(op.x), _dims(op)
    keeps = op.out.ndim == op.x.ndim and op.x.ndim > 0
    zero = zeros_stay(flow, op)
    for d in dims:
        if not (op.name in _SUMS and zero):
            flow.lossy(labels[d])
        elif op.fixed:
            flow.weighed(labels[d], labels[d])
        if op.out.ndim and op.out.numel() > 1:
            flow.read(labels[d])
    left: list[Any] = [None if d in dims else label for d, label in enumerate(labels)]
    left = left if keeps else [label for d, label in enumerate(left) if d not in dims]
    for out in op.outputs:
        flow.put(out, left, zero and op.name in (*_SUMS, "mean", "amax", "amin", "prod", "var", "std"))


@rule("max", "min", "median", "mode", "kthvalue", "argmax", "argmin", "topk", "sort", "argsort", "cummax", "cummin")
def numbered(flow: Flow, op: Op) -> None:
    """The number of an element is told, so that all stay."""
    if op.get("other") is not None:
        pointwise(flow, op)
        return
    labels = flow.of(op.x)
    dims = _dims(op) if op.get("dim") is not None or op.out.ndim != op.x.ndim else [op.x.ndim - 1]
    for d in dims:
        flow.freeze(labels[d], "elements are told by number")
    if op.out.ndim == op.x.ndim:
        left: list[Any] = [None if d in dims else label for d, label in enumerate(labels)]
    else:
        left = [label for d, label in enumerate(labels) if d not in dims]
    for out in op.outputs:
        if out.ndim != len(left):
            raise NoRule
        flow.put(out, left)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def along(flow: Flow, op: Op) -> None:
    """The same shape; every element of a dimension depends on all of it."""
    labels = flow.of(op.x)
    if op.x.ndim:
        flow.lossy(labels[op["dim"] % op.x.ndim])
    flow.put(op.out, labels)


@rule("cumsum", "cumprod", "logcumsumexp")
def cumulative(flow: Flow, op: Op) -> None:
    """Elements have an order."""
    labels = flow.of(op.x)
    if op.x.ndim:
        flow.freeze(labels[op["dim"] % op.x.ndim], "its order counts")
    flow.put(op.out, labels)
