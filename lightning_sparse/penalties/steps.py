"""Whose weights an optimizer steps, and how often it has really stepped."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_sparse.core.hooks import StepHooks, loss_scale, skipped, unwrap
from lightning_sparse.core.select import Target

Group = dict[str, Any]
Before = Callable[["Stepper", "Tensor | None"], None]
After = Callable[["Stepper"], None]


class Stepper:
    """One optimizer, followed: ``before`` runs once when its gradients are final, ``after`` when the step was taken.

    Args:
        optimizer: a torch optimizer.
        targets: of which some are in its groups.
        before: gradients are final.
        after: the step has happened.
        steps: how many were taken before.
    """

    def __init__(
        self, optimizer: Optimizer, targets: Sequence[Target], before: Before, after: After, steps: int
    ) -> None:
        self._optimizer, self._targets, self.steps = weakref.ref(optimizer), targets, steps
        self._call, self._done = before, after
        self._ready = False
        self._size, self._owned = -1, list[tuple[Target, Group]]()
        self._hooks = StepHooks(optimizer, self.discard, self._before, self._after)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, while it lives."""
        return self._optimizer()

    def owned(self) -> list[tuple[Target, Group]]:
        """The targets in the optimizer's groups, each with its group."""
        groups: list[Group] = [] if self.optimizer is None else self.optimizer.param_groups
        if self._size != (size := sum(len(group["params"]) for group in groups)):  # a layer was unfrozen
            where = {id(weight): group for group in groups for weight in group["params"]}
            self._owned = [(t, where[id(t.weight)]) for t in self._targets if id(t.weight) in where]
            self._size = size
        return self._owned

    def ready(self, scale: Tensor | None = None) -> None:
        """Gradients are final: do what is to be done before the step, though it may come later or never."""
        self._call(self, scale)
        self._ready = True

    def discard(self) -> None:
        """The step never happened, or its gradients are made anew."""
        self._ready = False

    def remove(self) -> None:
        """Let go of the optimizer."""
        self._hooks.remove()

    def _before(self) -> None:
        if not self._ready and self.optimizer is not None:
            self.ready(loss_scale(self.optimizer))

    def _after(self) -> None:
        # not ready: a step within a step, of an optimizer that calls its parent's, whose hooks have done the rest
        if self._ready and self.optimizer is not None and not skipped(self.optimizer):
            self._done(self)
            self.steps += 1
        self._ready = False


class Steppers:
    """The optimizers that are followed, in the order in which they came.

    Args:
        targets: what is penalized.
        before: for each, once when its gradients are final.
        after: for each, when it has stepped.
        steps: counts to go on from, in that order.
    """

    def __init__(self, targets: Sequence[Target], before: Before, after: After, steps: Sequence[int] = ()) -> None:
        self._targets, self._calls = targets, (before, after)
        self._saved, self._all = list(steps), list[Stepper]()

    @property
    def counts(self) -> list[int]:
        """Steps that each has taken."""
        now = [stepper.steps for stepper in self._all]
        return now + self._saved[len(now) :]

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; one that is followed already stays so.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if another one steps the same weights, or if it is LBFGS with a line search, which would compare
                losses without the penalty.
        """
        optimizer = unwrap(optimizer)
        mine = _weights(optimizer)
        for other in [s.optimizer for s in self._all if s.optimizer not in (None, optimizer)]:
            shared = mine & _weights(other) if other else set()
            if names := [t.name for t in self._targets if id(t.weight) in shared]:
                raise ValueError(f"two optimizers step the same weights: {', '.join(names)}; give each to one")
        self.find(optimizer)

    def find(self, optimizer: Optimizer) -> Stepper:
        """The stepper of an optimizer. A new one takes the place of the one whose weights it steps: it replaced it."""
        optimizer = unwrap(optimizer)
        for stepper in self._all:
            if stepper.optimizer is optimizer:
                return stepper
        if isinstance(optimizer, LBFGS) and optimizer.param_groups[0].get("line_search_fn"):
            raise ValueError("LBFGS searches along losses without the penalty; give it line_search_fn=None")
        mine, counts = _weights(optimizer), self.counts
        old = next((s for s in self._all if s.optimizer is None or mine & _weights(s.optimizer)), None)
        index = len(self._all) if old is None else self._all.index(old)
        made = Stepper(optimizer, self._targets, *self._calls, counts[index] if index < len(counts) else 0)
        if old:
            old.remove()
        self._all[index : index + 1] = [made]
        return made

    def owned(self) -> list[tuple[Target, Group]]:
        """What they step together."""
        return [pair for stepper in self._all for pair in stepper.owned()]

    def discard(self) -> None:
        """Forget steps that never happened (a gradient scaler skipped them)."""
        for stepper in self._all:
            stepper.discard()

    def detach(self) -> None:
        """Let go of all; counts stay."""
        self._saved = self.counts
        for stepper in self._all:
            stepper.remove()
        self._all = []


def final(weight: Tensor) -> Tensor | None:
    """The gradient that the coming step will use, or None where the optimizer leaves the weight alone.

    Raises:
        ValueError: if it is sparse: a penalty reaches every entry.
    """
    if weight.grad is not None and weight.grad.layout is not weight.layout:
        raise ValueError("a penalty reaches all weights, but their gradient is sparse; take Embedding(sparse=False)")
    return weight.grad


def _weights(optimizer: Optimizer) -> set[int]:
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}
