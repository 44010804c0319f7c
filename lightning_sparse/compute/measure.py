"""How long a layer takes with its zeros and without them, on this machine and for inputs of one shape."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.support import FORMS

_ROUNDS, _SECONDS = 7, 0.5


class Input(NamedTuple):
    """What a layer was called with.

    Attributes:
        shape: of the input.
        dtype: of the input; of indices, an embedding's.
        differentiable: whether its gradient is needed.
        autocast: the type that autocast takes, or None.
    """

    shape: torch.Size
    dtype: torch.dtype
    differentiable: bool
    autocast: torch.dtype | None


class Timing(NamedTuple):
    """Seconds for a forward and a backward pass."""

    dense: float
    sparse: float


def seen(x: Tensor) -> Input:
    """What matters of an input.

    Example:
        >>> seen(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return Input(x.shape, x.dtype, x.requires_grad, cast)


def measure(dense: nn.Module, mask: Tensor, given: Input) -> Timing:
    """The shortest of a few runs of both, in turns; no gradient is written, no random state is touched.

    Args:
        dense: with zeros where the mask has none.
        mask: bool, of the weight's shape.
        given: what it is called with in training.

    Example:
        >>> timing = measure(nn.Linear(8, 4), torch.rand(4, 8) < 0.1, seen(torch.zeros(2, 8)))
        >>> timing.dense > 0 and timing.sparse > 0
        True
    """
    sparse = FORMS[type(dense)].from_dense(dense, mask)  # type: ignore[attr-defined]
    x = _made(given, dense)
    runs = {"dense": _run(dense, x, given.autocast), "sparse": _run(sparse, x, given.autocast)}
    times: Mapping[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for i in range(_ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name] += [time.perf_counter() - start] if i else []  # the first warms up
        if i > 1 and time.perf_counter() - begun > _SECONDS:
            break
    return Timing(min(times["dense"]), min(times["sparse"]))


def _made(given: Input, layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.arange(given.shape.numel()).remainder_(layer.num_embeddings).view(given.shape).to(given.dtype)
    x = torch.linspace(-1, 1, given.shape.numel()).view(given.shape).to(given.dtype)
    return x.requires_grad_(given.differentiable)


def _run(layer: nn.Module, x: Tensor, cast: torch.dtype | None) -> Callable[[], Any]:
    own = layer.values if isinstance(layer, SparseLayer) else layer._parameters["weight"]
    bias = layer._parameters.get("bias")
    wanted = [t for t in (own, bias, x) if t is not None and t.requires_grad]

    @torch.enable_grad()
    def run() -> None:
        forward = type(layer).forward  # not the user's hooks
        with torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
            y = forward(layer, x)
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return run
