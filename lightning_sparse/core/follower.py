"""One optimizer followed step by step: stage what the gradient says, then commit what the step made true."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.hooks import StepHooks, loss_scale, skipped
from lightning_sparse.core.optstate import ZeroGuard, mask_state
from lightning_sparse.core.param import SparseParam


class Follower:
    """The sparse parameters that one optimizer steps, kept on their masks.

    Args:
        optimizer: a torch optimizer.
        params: the sparse parameters in its groups.
        algorithm: planned for the run.
        steps: optimizer steps taken so far.
        overdue: whether an update waits for a finite gradient.
        moved: called after masks moved.

    Raises:
        ValueError: if the algorithm replaces steps and the optimizer is LBFGS, which has no single step to replace.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: list[SparseParam],
        algorithm: Algorithm,
        *,
        steps: int,
        overdue: bool,
        moved: Callable[[], None],
    ) -> None:
        if algorithm.replace_step and isinstance(optimizer, LBFGS):
            raise ValueError("replace_step=True cannot work with LBFGS: its step takes many gradients; leave it False")
        self._optimizer = weakref.ref(optimizer)
        self.params, self.algorithm = params, algorithm
        self.steps, self.overdue = steps, overdue
        self.groups = size(optimizer)
        self._moved = moved
        self._staged = self._replaced = False
        self._guard = ZeroGuard()
        self._hooks = StepHooks(optimizer, self._open, self._before, self.commit)

    def follows(self, optimizer: Optimizer) -> bool:
        """Whether this is the follower of ``optimizer``."""
        return self._optimizer() is optimizer

    @property
    def alive(self) -> bool:
        """Whether the optimizer still exists."""
        return self._optimizer() is not None

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        optimizer = self._optimizer()
        assert optimizer is not None, "its own hooks call"
        return optimizer

    def remove(self) -> None:
        """Let go of the optimizer."""
        self.discard()
        self._hooks.remove()

    def stage(self) -> None:
        """Gradients are final: keep what the algorithm needs of them, then mask them."""
        step = self.steps + 1
        if self.overdue or self.algorithm.needs_gradient(step):
            self._keep_gradients()
        self._staged = True
        if self.algorithm.replace_step and self._due(step) and self._update(step):
            self._replaced = True
            for group in self.optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = None  # the step that comes does nothing
            return
        pairs = [(p.place.weight.grad, p.gate) for p in self.params if p.place.weight.grad is not None]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [gate for _, gate in pairs])

    def commit(self) -> None:
        """The step has happened: count it, move masks if that is due, zero what is dead."""
        with torch.no_grad():
            self._guard.lower()
            if not skipped(self.optimizer):
                self.steps += 1
                self._unscale()
                self._observe()
                if not self._replaced and self._due(self.steps):
                    self._update(self.steps)
                zero(self.params)
            self.discard()

    def discard(self) -> None:
        """Forget what was staged."""
        self._guard.lower()
        self._staged = self._replaced = False
        if not self.algorithm.needs_gradient(self.steps + 1):
            for p in self.params:
                p.dense_grad = None  # else the buffer is used again

    def _open(self) -> None:
        self._staged = False

    def _before(self) -> None:
        with torch.no_grad():
            if not self._staged:
                self.stage()
            self._guard.lift(self.optimizer, self.params)

    def _due(self, step: int) -> bool:
        return self.overdue or self.algorithm.due(step)

    def _keep_gradients(self) -> None:
        for p in self.params:
            gradient = p.place.weight.grad
            if gradient is None or p.dense_grad is None:
                p.dense_grad = None if gradient is None else gradient.detach().clone()
            else:
                p.dense_grad.copy_(gradient)

    def _unscale(self) -> None:
        scale = loss_scale(self.optimizer)
        if scale is not None:
            for p in self.params:
                if p.dense_grad is not None:
                    p.dense_grad.div_(scale)

    def _observe(self) -> None:
        seen = [p for p in self.params if p.dense_grad is not None] if self._staged else []
        if seen and not self._replaced:
            self._tell(seen, self.steps)
            self.algorithm.observe(seen, self.steps)

    def _tell(self, params: Sequence[SparseParam], step: int) -> None:
        for p in params:
            p.step = step

    def _update(self, step: int) -> bool:
        """Move masks, if what the algorithm needs is there and finite; else the update stays overdue."""
        params = self.params
        if self.algorithm.needs_gradient(step):
            params = [p for p in params if p.dense_grad is not None]
            finite = all(bool(torch.isfinite(p.dense_grad).all()) for p in params if p.dense_grad is not None)
            if not params or not self._staged or not finite:
                self.overdue = True
                return False
        self.overdue = False
        self._tell(params, step)
        if self.algorithm.replace_step:
            self.algorithm.observe([p for p in params if p.dense_grad is not None], step)
        masks = self.algorithm.update(params, step)
        for p in params:
            if p.name in masks:
                self._move(p, masks[p.name])
        self._moved()
        return True

    def _move(self, p: SparseParam, mask: Tensor) -> None:
        """Take the new mask; what was dropped or grown is zero, in the weight and in the optimizer's state."""
        if torch.equal(mask, p.mask):
            return
        survivors = p.mask & mask
        p.place.weight.mul_(survivors)
        mask_state(self.optimizer, p.place.weight, survivors)
        if isinstance(self.optimizer, LBFGS):
            self.optimizer.state.clear()  # its history mixes all entries
        p.set_mask(mask)


def zero(params: Sequence[SparseParam]) -> None:
    """Zero the dead weights."""
    if params:
        torch._foreach_mul_([p.place.weight for p in params], [p.gate for p in params])


def size(optimizer: Optimizer) -> int:
    """Number of parameters in the optimizer's groups."""
    return sum(len(group["params"]) for group in optimizer.param_groups)
