"""Weight decay that leaves some weights alone."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_sparse.core.hooks import unwrap


class Undecayed:
    """Takes the weight decay off some parameters while their optimizer steps, whatever its kind.

    During a step these parameters are in a group of their own with ``weight_decay=0``; before and after it the groups
    are the user's, so that schedulers and checkpoints see no others.

    Args:
        weights: the parameters.

    Example:
        >>> import torch
        >>> a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([a, b], lr=0.1, weight_decay=1.0)
        >>> Undecayed([a]).attach(optimizer)
        >>> a.grad, b.grad = torch.zeros(1), torch.zeros(1)
        >>> optimizer.step()
        >>> a.item(), round(b.item(), 4), len(optimizer.param_groups)
        (1.0, 0.9, 1)
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._ids = {id(weight) for weight in weights}
        self._handles: dict[int, list[RemovableHandle]] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """From its next step on; twice changes nothing."""
        optimizer = unwrap(optimizer)
        if id(optimizer) in self._handles or not any(group.get("weight_decay") for group in optimizer.param_groups):
            return
        apart: dict[int, dict[str, Any]] = {}  # the same object at every step: others may hold on to it

        def split(stepping: Optimizer, args: Any, kwargs: Any) -> None:
            whole(stepping)  # of a step that failed
            for i, group in enumerate(list(stepping.param_groups)):
                free = [weight for weight in group["params"] if id(weight) in self._ids]
                if free and group.get("weight_decay"):
                    own = apart.setdefault(i, {})
                    own.clear()
                    own.update({**group, "params": free, "weight_decay": 0.0, "whole": (group, group["params"])})
                    group["params"] = [weight for weight in group["params"] if id(weight) not in self._ids]
                    stepping.param_groups.append(own)

        def whole(stepping: Optimizer, args: Any = None, kwargs: Any = None) -> None:
            for i in reversed([i for i, group in enumerate(stepping.param_groups) if "whole" in group]):
                group, params = stepping.param_groups.pop(i).pop("whole")
                group["params"] = params

        before, after = optimizer.register_step_pre_hook(split), optimizer.register_step_post_hook(whole)
        self._handles[id(optimizer)] = [before, after]

    def detach(self) -> None:
        """Let go of all optimizers."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles = {}
