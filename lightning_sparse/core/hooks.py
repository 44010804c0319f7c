"""Around an optimizer step: one call when its gradients are final, one when it has really happened."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

Call = Callable[[], None]
# of the function that torch puts around any class' step; the class may show another one, put around that
_WRAPPER = getattr(Optimizer.profile_hook_step(print), "__code__", None)


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside the wrappers of Lightning and Fabric.

    Raises:
        TypeError: if it has no step hooks; nothing could keep its weights sparse.

    Example:
        >>> unwrap(object())
        Traceback (most recent call last):
        ...
        TypeError: object has no step hooks (register_step_post_hook), ...
    """
    while not isinstance(optimizer, Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not hasattr(optimizer, "register_step_post_hook") or not hasattr(optimizer, "register_step_pre_hook"):
        raise TypeError(
            f"{type(optimizer).__name__} has no step hooks (register_step_post_hook), so nothing can keep weights "
            "sparse after its steps; derive it from torch.optim.Optimizer"
        )
    return optimizer  # type: ignore[no-any-return]  # duck-typed: what counts is that it has the hooks


class StepHooks:
    """Two torch hooks on one optimizer; while they are on it, it keeps the engine alive.

    A step without a closure has its gradients ready: ``before`` runs at once. With a closure they are made inside it,
    so the closure is wrapped: ``opened`` runs before it and ``before`` after it (LBFGS: around each of several). A step
    that calls its parent's is over when the outer one is.

    Args:
        optimizer: with torch's step hooks.
        opened: new gradients are about to be made.
        before: gradients are final, the step comes next.
        after: the step has happened.
    """

    def __init__(self, optimizer: Optimizer, opened: Call, before: Call, after: Call) -> None:
        def pre(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                return before()

            def closed() -> Any:
                opened()
                loss = closure()
                before()
                return loss

            return ((args[0], closed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closed})

        def post(stepping: Optimizer, args: Any, kwargs: Any) -> None:
            if depth(stepping) <= 1:
                after()

        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@torch.compiler.disable  # type: ignore[untyped-decorator]
def depth(optimizer: Optimizer) -> int:
    """How many calls of the optimizer's ``step`` are running: 2 where a child's step has called its parent's.

    Each is a frame of torch's wrapper around ``step``. Counting these, and not the hooks' calls, stays right when a
    step fails: then torch calls no hook. 0 outside of any step, and for optimizers with hooks of their own making.

    Example:
        >>> depth(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        0
    """
    found, frame = 0, sys._getframe()
    while (outer := frame.f_back) is not None:
        frame = outer
        if frame.f_code is _WRAPPER and (args := frame.f_locals.get("args")):
            found += args[0] is optimizer
    return found


def skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler made a fused optimizer skip the step it seems to have taken.

    Fused optimizers skip inside the kernel: the hooks run all the same, and only ``found_inf`` tells.
    """
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, torch.Tensor) and bool(found)


def loss_scale(optimizer: Optimizer) -> "torch.Tensor | None":
    """The factor that gradients still carry under a fused optimizer and a gradient scaler, else None."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, torch.Tensor) else None
