"""The dense gradient of a layer without zeros, of the backward passes that its values' gradient is of."""

import weakref
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_sparse.core.compact import Compact

_pass_of = torch._C._current_graph_task_id  # a number for each backward pass; -1 outside


class Capture(Compact):
    """Collects ``dense_grad`` while ``capture`` is set.

    What the outputs of the layer see of one backward pass waits until that pass has given the values their gradient:
    passes that look for other gradients (``torch.autograd.grad``) and gradients that were thrown away do not count.
    """

    _waiting: dict[int, Tensor]  # by backward pass
    _counted: "weakref.ref[Tensor] | None"  # the gradient of the values that `dense_grad` is of
    _listening: bool

    def __init__(self) -> None:
        super().__init__()
        self._waiting, self._counted, self._listening = {}, None, False

    def __getstate__(self) -> dict[str, Any]:
        """A copy listens to no gradient yet."""
        gone: dict[str, Any] = {
            "_waiting": {},
            "_counted": None,
            "_listening": False,
            "dense_grad": None,
            "capture": False,
        }
        return {**self.__dict__, **gone}

    def watch(self, y: Tensor, x: Tensor) -> Tensor:
        """The output, whose gradient will also give the dense gradient of the weight while ``capture`` is set."""
        if self.capture and y.requires_grad and self.values.requires_grad:
            kept = x.detach()
            self._listen()
            y.register_hook(lambda grad: self._wait(self._dense_gradient(grad.detach(), kept)))  # type: ignore[no-untyped-call]
        return y

    def watch_weight(self, weight: Tensor) -> Tensor:
        """The dense weight, made of the values: its gradient is wanted itself."""
        if self.capture and weight.requires_grad:
            self._listen()
            weight.register_hook(lambda grad: self._wait(grad.detach()))  # type: ignore[no-untyped-call]
        return weight

    @abstractmethod
    def _dense_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Of the weight, by the gradient of the output and the input."""

    def _listen(self) -> None:
        if _pass_of() == -1:  # not a layer that is computed again within a backward pass
            self._waiting.clear()  # passes that gave the values nothing
        if not self._listening:
            self._listening, own = True, weakref.ref(self)

            def heard(values: Tensor) -> None:
                if (layer := own()) is not None and layer.values is values:
                    layer._count()

            self.values.register_post_accumulate_grad_hook(heard)  # type: ignore[no-untyped-call]

    def _wait(self, found: Tensor) -> None:
        before = self._waiting.get(_pass_of())
        self._waiting[_pass_of()] = found if before is None else before + found

    @torch.no_grad()
    def _count(self) -> None:
        """A pass has added to the values' gradient."""
        found, gradient = self._waiting.pop(_pass_of(), None), self.values.grad
        if found is None or gradient is None:
            return
        anew = self.dense_grad is None or not self._goes_on(gradient, self.dense_grad, found)
        self.dense_grad = found if anew or self.dense_grad is None else self.dense_grad + found
        self._counted = weakref.ref(gradient)

    def _goes_on(self, gradient: Tensor, before: Tensor, found: Tensor) -> bool:
        """Whether the values' gradient is of the passes before too, or was zeroed since."""
        same = self._counted is not None and self._counted() is gradient
        if self.averaged:  # the passes before are those of all processes by now
            return same
        alone = (gradient - self.of_values(found)).norm()
        together = (gradient - self.of_values(found) - self.of_values(before)).norm()
        return same if together == alone or not bool(torch.isfinite(together - alone)) else bool(together < alone)
