"""Operations that run, seen below autograd and autocast."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While it is entered, every operation goes through a function.

    Args:
        see: given the operator, its arguments and keyword arguments; runs it and returns what came out.
    """

    def __init__(self, see: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it."""
        kwargs = kwargs or {}
        if func._can_decompose():  # under inference_mode, where nothing was taken apart before
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._see(func, args, kwargs)
