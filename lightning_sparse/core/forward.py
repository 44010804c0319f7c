"""Around forward passes: a sample of the weights for training, their centre for everything else."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.core.param import SparseParam

Show = Callable[[Sequence[SparseParam]], None]
Centre = Callable[[SparseParam], Tensor]


class Peek:
    """A hook of a module; a copy of it, in a copied model, does nothing.

    Args:
        call: what to do; None for a copy.
        copied: is told when the model is copied, with :mod:`copy`'s memo of what has been so far.
    """

    def __init__(self, call: Callable[..., None] | None, copied: Callable[[Any], None] | None = None) -> None:
        self._call, self._copied = call, copied

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *args: Any) -> None:
        """Called by torch."""
        if self._call is not None:
            self._call(module, *args)

    def __deepcopy__(self, memo: Any) -> "Peek":
        """Without the engine: what it would show belongs to another model."""
        if self._copied is not None:
            self._copied(memo)
        return Peek(None)

    def __reduce__(self) -> Any:
        """Pickles without the engine."""
        return Peek, (None,)


class ForwardHooks:
    """Hooks on every module through which a sparse weight may be used.

    Before a forward pass of a module, or of one that holds it (attention uses the weight of a submodule that it never
    calls), its weights are shown as the mode of their module wants them. ``state_dict`` and copies of the model get the
    centre, without a touch of the weights: a backward pass may need these as they are.

    Args:
        model: the model.
        params: the sparse parameters.
        show: shows parameters as their modules' modes want.
        centre: the effective weight without chance.
    """

    def __init__(self, model: nn.Module, params: Sequence[SparseParam], show: Show, centre: Centre) -> None:
        self._handles: list[Any] = []
        self._show, self._centre = show, centre
        weights = {id(p.place.weight): p for p in params}
        own = {id(m): [weights[id(w)] for w in m._parameters.values() if id(w) in weights] for m in model.modules()}
        for module in model.modules():
            under = {p.name: p for child in module.modules() for p in own[id(child)]}
            if under:
                held = [(p, p.place.weight) for p in under.values()]
                self._handles.append(module.register_forward_pre_hook(Peek(self._before(held))))
            if own[id(module)]:
                peek = Peek(self._after_saving(own[id(module)]), self._when_copied(own[id(module)]))
                self._handles.append(module.register_state_dict_post_hook(peek))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, held: Sequence[tuple[SparseParam, Tensor]]) -> Callable[..., None]:
        def before(module: nn.Module, args: Any) -> None:
            # under functional_call a module holds tensors of the caller's: not ours to write
            self._show([p for p, weight in held if p.place.weight is weight])

        return before

    def _after_saving(self, own: Sequence[SparseParam]) -> Callable[..., None]:
        def after(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            for name, weight in module._parameters.items():
                for p in own:
                    if p.noisy and weight is p.place.weight and prefix + name in state:
                        state[prefix + name] = self._centre(p)

        return after

    def _when_copied(self, own: Sequence[SparseParam]) -> Callable[[Any], None]:
        @torch.no_grad()
        def copied(memo: Any) -> None:
            for p in own:
                if p.noisy:
                    copy.deepcopy(p.place.weight, memo).copy_(self._centre(p))  # the copy that the model's copy holds

        return copied
