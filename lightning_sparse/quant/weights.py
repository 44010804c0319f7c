"""Weights that forward passes see on their grid, while optimizers and checkpoints have them as floats."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.core.forward import Peek
from lightning_sparse.core.hooks import StepHooks, unwrap
from lightning_sparse.core.select import modules_of
from lightning_sparse.quant.grid import output_axis, snap
from lightning_sparse.quant.quantization import Layer


class ShownWeight:
    """One weight: its float values are kept in a buffer while the parameter shows the grid.

    Args:
        name: of the layer.
        module: the layer.
        bits: of its weight.

    Attributes:
        weight: the parameter.
        shown: whether it is on the grid now.
    """

    def __init__(self, name: str, module: nn.Module, bits: int) -> None:
        self.name, self.module, self.bits, self.axis = name, module, bits, output_axis(module)
        self.weight: Tensor = module.weight  # type: ignore[assignment]
        self.shown = False
        self._float: Tensor | None = None
        self._written = (-1, 0)  # version and place of the parameter as it was left

    @property
    def present(self) -> bool:
        """Whether the layer holds this parameter now; under ``functional_call`` it holds a tensor of the caller's."""
        return self.module._parameters.get("weight") is self.weight

    def refresh(self) -> None:
        """Take the parameter that the layer has now, if it was replaced."""
        held = self.module._parameters.get("weight")
        if not self.shown and isinstance(held, nn.Parameter):
            self.weight = held

    def show(self, work: Tensor) -> None:
        """Put the parameter on its grid."""
        kept, weight = self._float, self.weight
        if kept is None or kept.shape != weight.shape or kept.dtype != weight.dtype or kept.device != weight.device:
            kept = self._float = _memory_like(weight)
        kept.copy_(weight)
        snap(weight, self.bits, self.axis, work)
        self.shown, self._written = True, self._version()

    def restore(self) -> None:
        """Put the float values back; what other code has written since is the weight now, and stays."""
        if self.shown and self._float is not None and self._written == self._version():
            self.weight.copy_(self._float)
        self.shown = False

    def value(self) -> Tensor:
        """The float values, whatever the parameter shows."""
        intact = self.shown and self._float is not None and self._written == self._version()
        return (self._float if intact and self._float is not None else self.weight).detach().clone()

    def _version(self) -> tuple[int, int]:
        return self.weight._version, self.weight.data_ptr()


class ShownWeights:
    """All of a model's: on their grid from each forward pass until the step of the optimizer that steps them.

    Straight through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432): the gradient at the grid's point is applied
    to the float values. They are what ``state_dict`` and copies of the model get, at any time.

    Args:
        model: the model.
        layers: by module name.

    Attributes:
        open: whether forward passes are to see the grid; else they see floats.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        modules = modules_of(model)
        self.all = [ShownWeight(name, modules[name], layer.bits) for name, layer in layers.items()]
        self.open = True
        self._hidden = set(self.all)
        self._work = torch.empty(0)
        self._handles: list[Any] = []
        self._steps: list[tuple[Optimizer, StepHooks]] = []
        self._after = set[int]()  # keys of what comes after their steps
        self._hook(model)

    @torch.no_grad()
    def show(self) -> None:
        """Put all on their grids."""
        for each in [each for each in self.all if each in self._hidden]:
            each.refresh()
            self._show(each)

    @torch.no_grad()
    def restore(self, optimizer: Optimizer | None = None) -> None:
        """Put the float values back: of all, or of those that one optimizer steps."""
        wanted = None if optimizer is None else {id(w) for group in optimizer.param_groups for w in group["params"]}
        for each in self.all:
            if each.shown and (wanted is None or id(each.weight) in wanted):
                each.restore()
                self._hidden.add(each)

    def attach(self, optimizer: Any) -> None:
        """See to it that this optimizer steps float values; before whatever else follows its steps.

        Raises:
            TypeError: if it has no step hooks.
        """
        stepping = unwrap(optimizer)
        if all(stepping is not known for known, _ in self._steps):
            hooks = StepHooks(stepping, self.reach, lambda: self._before_step(stepping), self.reach)
            pre: Any = stepping._optimizer_step_pre_hooks
            pre.move_to_end(next(reversed(pre)), last=False)  # an engine's latent weights must meet what it has shown
            self._steps.append((stepping, hooks))
            self._after.add(next(reversed(stepping._optimizer_step_post_hooks)))

    @torch.no_grad()
    def reach(self) -> None:
        """Show those that no hook shows before a forward pass, for they are inside of compiled code."""
        for each in self._unhooked if self.open else ():
            if each in self._hidden and each.present:
                self._show(each)

    def detach(self) -> None:
        """Put floats back, and let go of model and optimizers."""
        self.restore()
        for handle in [*self._handles, *(hooks for _, hooks in self._steps)]:
            handle.remove()
        self._handles, self._steps, self._after = [], [], set()

    def _before_step(self, optimizer: Optimizer) -> None:
        self.restore(optimizer)
        if self._unhooked:  # they are shown again after the step, and after what masks them
            post: Any = optimizer._optimizer_step_post_hooks
            post.move_to_end(next(key for key in post if key in self._after))

    def _show(self, each: ShownWeight) -> None:
        weight = each.weight
        if self._work.numel() < weight.numel() or self._work.device != weight.device:
            with torch.inference_mode(False):
                self._work = torch.empty(weight.numel(), device=weight.device)
        each.show(self._work.as_strided(weight.shape, weight.stride()))
        self._hidden.discard(each)

    def _hook(self, model: nn.Module) -> None:
        own: dict[int, list[ShownWeight]] = {}
        for module in model.modules():
            found = [each for each in self.all if module._parameters.get("weight") is each.weight]
            own |= {id(module): found} if found else {}
        outside = _outside_compiled(model)
        for module in model.modules():
            under = list({id(e): e for child in module.modules() for e in own.get(id(child), ())}.values())
            if under and id(module) in outside:
                self._handles.append(module.register_forward_pre_hook(Peek(self._before(under))))
            if id(module) in own:
                peek = Peek(_after_saving(own[id(module)]), _when_copied(own[id(module)]))
                self._handles.append(module.register_state_dict_post_hook(peek))  # type: ignore[no-untyped-call]

        in_place = [m for m in model.modules() if m._compiled_call_impl is not None]
        inside = {id(child) for module in in_place for child in module.modules()}
        self._unhooked = [each for each in self.all if id(each.module) in inside]  # what holds them may never be called

    def _before(self, under: Sequence[ShownWeight]) -> Callable[..., None]:
        @torch.no_grad()
        def before(module: nn.Module, args: Any) -> None:
            if self.open and self._hidden:
                for each in under:
                    if each in self._hidden and each.present:
                        self._show(each)

        return before


def _after_saving(own: Sequence[ShownWeight]) -> Callable[..., None]:
    def after(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for each in own:
            if each.shown and prefix + "weight" in state and module._parameters.get("weight") is each.weight:
                state[prefix + "weight"] = each.value()

    return after


def _when_copied(own: Sequence[ShownWeight]) -> Callable[[Any], None]:
    @torch.no_grad()
    def copied(memo: Any) -> None:
        for each in own:
            if each.shown:
                copy.deepcopy(each.weight, memo).copy_(each.value())

    return copied


def is_compiled(module: nn.Module) -> bool:
    """Whether it wraps a compiled module, or was compiled in place.

    Example:
        >>> is_compiled(torch.compile(nn.Linear(2, 2), backend="eager")), is_compiled(nn.Linear(2, 2))
        (True, False)
    """
    return isinstance(getattr(module, "_orig_mod", None), nn.Module) or module._compiled_call_impl is not None


def _outside_compiled(model: nn.Module) -> Collection[int]:
    """Modules whose hooks run outside of compiled code: they would break its graph."""
    inside = set[int]()
    for module in filter(is_compiled, model.modules()):
        in_place = module._compiled_call_impl is not None
        inside |= {id(child) for child in module.modules() if in_place or child is not module}
    return {id(module) for module in model.modules()} - inside


def _memory_like(weight: Tensor) -> Tensor:
    """Memory that is made while validating is written while training."""
    with torch.inference_mode(False):
        return torch.empty_like(weight, requires_grad=False)


def _nothing() -> None:
    """Floats come back before a step; the next forward pass shows the grid again."""
