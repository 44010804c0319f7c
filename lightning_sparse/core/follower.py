"""One optimizer followed step by step: stage what the gradient says, then commit what the step made true."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.gradients import Gradients, refuse_sparse, shown, unscale
from lightning_sparse.core.hooks import StepHooks, depth, loss_scale, skipped
from lightning_sparse.core.latent import Latent, catch_up, latents, learn, settle_latents, show
from lightning_sparse.core.masks import clear
from lightning_sparse.core.optstate import ZeroGuard, carry_state, forget, move_state, sweep
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patience import Patience
from lightning_sparse.core.sharded import is_sharded, local, shard_like
from lightning_sparse.core.swap import Swap
from lightning_sparse.core.unused import Unused

Owned = Callable[[Optimizer], list[SparseParam]]


class Follower:
    """The sparse parameters that one optimizer steps, kept on their masks.

    Args:
        optimizer: a torch optimizer.
        owned: finds the sparse parameters in its groups.
        algorithm: planned for the run.
        steps: optimizer steps taken so far.
        overdue: whether an update waits for a finite gradient.
        moved: called after masks moved.
        stepped: called with the optimizer and its step count after every step, masks moved.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        owned: Owned,
        algorithm: Algorithm,
        *,
        steps: int,
        overdue: bool,
        moved: Callable[[], None],
        stepped: Callable[[Optimizer, int], None],
    ) -> None:
        self._optimizer, self._owned, self._moved, self._stepped = weakref.ref(optimizer), owned, moved, stepped
        self.params, self._size = owned(optimizer), _size(optimizer)
        self.algorithm, self.steps, self.overdue = algorithm, steps, overdue
        self._staged = self._replaced = False
        self._patience = Patience()
        self._gradients, self._unused = Gradients(), Unused()
        self._guard, self._swap = ZeroGuard(), Swap(algorithm)
        self._hooks = StepHooks(optimizer, self._open, self._before, self.commit)
        self._listen()

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
        show(self.algorithm, [p for p in self.params if p.noisy])  # the others may hold an average by now
        self._hooks.remove()
        self._listen(False)

    def refresh(self) -> None:
        """Look for parameters that were added to the optimizer: a layer was unfrozen."""
        if self._size != (size := _size(self.optimizer)):
            self.params, self._size = self._owned(self.optimizer), size

    def stage(self) -> None:
        """Gradients are final: keep what the algorithm needs of them, then mask them."""
        if depth(self.optimizer) == 0:
            self._swap.restore(self.params)  # the last step failed
        self.refresh()
        refuse_sparse(self.params)
        self._unused.look(self.params)
        for p in self.params:
            p.fit()
        step = self.steps + 1
        if latents(self.params):
            catch_up(self.algorithm, self.params)
            self._swap.pull_back(self.params)
            self._staged = True
            return
        if self._needs_gradient(step):
            self._gradients.keep(self.params)
        self._staged = True
        if self.algorithm.replace_step and self._due(step) and any(p.target < p.size for p in self.params):
            self._replaced = self._update(step)
        self._gradients.mask(self.params)

    def commit(self) -> None:
        """The step has happened: count it, move masks if that is due, zero what is dead."""
        with torch.no_grad():
            self._guard.lower()
            self._swap.leave(self.params)
            if self._staged and not skipped(self.optimizer):
                self.steps += 1
                self._unused.count(self.params, self.algorithm, self.steps)
                unscale(self.params, loss_scale(self.optimizer))
                self._observe(self.steps)
                if not self._replaced and self._due(self.steps):
                    self._update(self.steps)
                if latents(self.params) and isinstance(self.algorithm, Latent) and not self.algorithm.holds(self.steps):
                    self._settle()
                self._stepped(self.optimizer, self.steps)
            # else a step within a step: an optimizer that calls its parent's, whose hooks have done the rest
            show(self.algorithm, self.params)
            plain = [p for p in self.params if p.latent is None]
            zero(plain)
            sweep(self.optimizer, plain)
            self.discard()

    def discard(self) -> None:
        """Forget what was staged, and take out what a step that failed has left in the parameters."""
        self._guard.lower()
        self._swap.restore(self.params)
        self._swap.forget()
        self._staged = self._replaced = False
        self._gradients.forget()
        if not self._needs_gradient(self.steps + 1):
            for p in self.params:
                p.dense_grad = None  # else the buffer is used again
        self._listen()

    def _listen(self, needed: bool | None = None) -> None:
        """Have layers without zeros compute the dense gradient of the step that comes, if it is needed."""
        for p in self.params:
            if p.compact is not None:
                p.compact.capture = self._needs_gradient(self.steps + 1) if needed is None else needed
                p.dense_grad = None

    def look(self, params: Sequence[SparseParam], training: bool | None = None) -> None:
        """A forward pass comes: show each of these weights as it wants them, or else as the mode of its module does."""
        mine = [p for p in self.params if any(p is other for other in params)]
        self._swap.look(mine, self.steps + 1, training)

    def _open(self) -> None:
        self._swap.restore(self.params)  # another closure of one step: its forward pass must see effective weights
        self._swap.forget()
        self._gradients.reopen()
        self._staged = False

    def _before(self) -> None:
        with torch.no_grad():
            if self._swap.inside:
                if depth(self.optimizer) != 1:
                    return  # a step within a step
                self.discard()  # the last step failed
            if latents(self.params) or not self._staged:
                self.stage()
            else:
                self._gradients.mask(self.params)  # a backward pass since then
            if latents(self.params):
                self._swap.enter(self.params, loss_scale(self.optimizer))
                return
            if self._replaced:
                for group in self.optimizer.param_groups:
                    for weight in group["params"]:
                        weight.grad = None  # the step that comes does nothing
            self._guard.lift(self.optimizer, self.params)

    def _due(self, step: int) -> bool:
        return self.overdue or self.algorithm.due(step)

    def _needs_gradient(self, step: int) -> bool:
        return self.overdue or self.algorithm.needs_gradient(step)

    def _observe(self, step: int) -> None:
        if latents(self.params):
            for p in self.params:
                p.step = step
            learn(self.algorithm, self.params, self.optimizer.param_groups, loss_scale(self.optimizer))
        elif (
            type(self.algorithm).observe is not Algorithm.observe
            and not self._replaced
            and (params := shown(self.params, step))
        ):
            self.algorithm.observe(params, step)

    def _update(self, step: int) -> bool:
        """Move masks, if what the algorithm needs is there and finite; else the update stays overdue."""
        params = self.params
        if isinstance(self.algorithm, Latent) and not latents(self.params):
            return False  # they have settled: a later fit goes on with fixed masks
        if self._needs_gradient(step) and not latents(self.params):
            params = shown(self.params, step)
            self.overdue = not params
            self._patience.look(self.overdue, step, self.params)
            if self.overdue:
                return False
            if self.algorithm.replace_step:
                self.algorithm.observe(params, step)
        for p in params:
            p.step = step
        masks = self.algorithm.update(params, step)
        for p in params:
            if p.name in masks:
                self._move(p, masks[p.name])
        self._moved()
        return True

    def _settle(self) -> None:
        """Weights are plain from now on."""
        show(self.algorithm, self.params)
        settle_latents(self.params)
        forget(self.optimizer)
        for p in self.params:
            carry_state(self.optimizer, p, p.mask)

    def _move(self, p: SparseParam, mask: Tensor) -> None:
        """Take the new mask; what was dropped or grown is zero, in the weight and in the optimizer's state."""
        if torch.equal(mask, p.mask):
            return
        if p.compact is not None:
            before = p.live
            source = p.compact.move(mask)
            p.live = p.compact.live
            move_state(self.optimizer, p.place.weight, before, source)
            forget(self.optimizer)
            return
        survivors = p.mask & mask
        p.set_mask(mask)
        if p.latent is None:
            local(p.place.weight).mul_(shard_like(survivors, p.place.weight))
            carry_state(self.optimizer, p, survivors)
        forget(self.optimizer)


def zero(params: Sequence[SparseParam]) -> None:
    """Zero the dead weights."""
    held = [p for p in params if p.compact is None]
    clear([p.place.weight for p in held], [p.bits for p in held])


def replaceable(algorithm: Algorithm, optimizer: Optimizer) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: if the optimizer is LBFGS, which has no single step that an algorithm could replace, and which
            flattens weights, so that no processes can share them.
    """
    if isinstance(optimizer, LBFGS) and any(is_sharded(w) for group in optimizer.param_groups for w in group["params"]):
        raise ValueError("LBFGS flattens weights, which it cannot where processes share them; take another optimizer")
    if algorithm.replace_step and isinstance(optimizer, LBFGS):
        raise ValueError("replace_step=True cannot work with LBFGS: its step takes many gradients; leave it False")


def _size(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
