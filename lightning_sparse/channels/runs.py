"""A model is run, looked at, and left as it was."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_sparse.core.probe import Loss


def each(model: nn.Module, run: Callable[[], Any], batches: Iterable[Any] | None, loss: Loss | None) -> Iterator[Any]:
    """What the loss gives for each batch; what ``run`` gives, once, where there are none."""
    if batches is None or loss is None:
        yield run()
        return
    for batch in batches:
        yield loss(model, batch)


@contextmanager
def differentiable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Frozen weights have gradients inside.

    Example:
        >>> weight = nn.Parameter(Tensor([1.0]), requires_grad=False)
        >>> with differentiable([weight]):
        ...     assert weight.requires_grad
        >>> weight.requires_grad
        False
    """
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
