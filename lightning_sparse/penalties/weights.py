"""Penalties on parameters: their gradient before the optimizer's step, or their proximal operator after it."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.core.errors import collecting, raise_problems
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.select import Target
from lightning_sparse.penalties.base import Penalty
from lightning_sparse.penalties.choose import argument_problems, chosen_gammas, chosen_weights, outputs_first
from lightning_sparse.penalties.steps import Group, Stepper, Steppers, final
from lightning_sparse.penalties.strength import Strength, Strengths


class WeightRegularizer:
    """Adds a penalty's gradient to weights before each step of their optimizer, or shrinks them after it.

    It follows the optimizers by itself, in any loop. The penalty is weighed once a step, however many batches were
    accumulated, and weights that have no gradient in a step are left alone, as weight decay leaves them. Attach it
    before a ``Sparsifier``, which then sees the gradient of the penalized loss.

    Args:
        model: any module.
        penalty: what is paid.
        strength: a number, a schedule over the run, or one for each glob over names; the first that matches counts.
        optimizers: those to attach at once.
        on: "weights", or "gammas": the weights of BatchNorm.
        proximal: whether weights are shrunk by the proximal operator, at ``lr * strength``, after each step, which
            makes exact zeros; then no gradient is added.
        momentum: whether the proximal step is as long as the steps that a gradient makes under SGD's momentum: with
            ``lr * (1 - dampening) / (1 - momentum)`` in the place of ``lr``.
        include: globs over parameter or module names; None takes :func:`~lightning_sparse.core.select.select`'s default
            and leaves out what the penalty does not fit.
        exclude: globs of what stays free.
        total_steps: optimizer steps of the run, for schedules.
        steps: counts of an earlier run to go on from, as :attr:`steps` gave them.

    Attributes:
        targets: what is penalized.
        left_out: what the default would take and the penalty does not fit, with the reason, a sentence each.

    Raises:
        ValueError: if nothing matches, the penalty does not fit, a strength is negative ...; all at once.

    Example:
        >>> from lightning_sparse.penalties import L1
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> regularizer = WeightRegularizer(model, L1(), 0.5, optimizers=[optimizer], proximal=True)
        >>> for _ in range(100):
        ...     loss = model(torch.randn(8, 4)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> int(model.weight.count_nonzero()), float(regularizer.value())
        (0, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        strength: Strength = 1e-4,
        *,
        optimizers: Iterable[Optimizer] = (),
        on: Literal["weights", "gammas"] = "weights",
        proximal: bool = False,
        momentum: bool = False,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        total_steps: int | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        self.penalty, self.proximal, self.momentum = penalty, proximal, momentum
        problems = argument_problems(penalty, strength, on, proximal, include, exclude)
        raise_problems(problems, type(self).__name__)
        self.targets, self.left_out = list[Target](), list[str]()
        with collecting(problems):
            if on == "gammas":
                self.targets = chosen_gammas(model, include, exclude)
            else:
                self.targets, self.left_out = chosen_weights(model, penalty, include, exclude)
        with collecting(problems):
            self._strengths = Strengths(strength, [t.name for t in self.targets], total_steps)
        raise_problems(problems, type(self).__name__)
        self._steppers = Steppers(self.targets, self._before, self._after, steps)
        try:
            for optimizer in optimizers:
                self.attach(optimizer)
        except (TypeError, ValueError):
            self.detach()
            raise

    @property
    def steps(self) -> list[int]:
        """Steps that each optimizer has taken, in the order in which they were attached."""
        return self._steppers.counts

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; attaching twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if another attached one steps the same weights, if it is LBFGS with a line search, or if the
                weights are to be shrunk at its ``lr`` and it has none.
        """
        if self.proximal and any("lr" not in group for group in unwrap(optimizer).param_groups):
            raise ValueError(f"{type(optimizer).__name__} has no lr to shrink weights at; leave proximal=False")
        self._steppers.attach(optimizer)

    def unattached(self) -> list[str]:
        """What is to be penalized, but no attached optimizer steps it."""
        owned = {target.name for target, _ in self._steppers.owned()}
        return [target.name for target in self.targets if target.name not in owned]

    def detach(self) -> None:
        """Let go of all optimizers; counts stay."""
        self._steppers.detach()

    def discard(self) -> None:
        """Forget what was added for a step that never happened (a gradient scaler skipped it)."""
        self._steppers.discard()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def add(self, optimizer: Optimizer, scale: Tensor | None = None) -> None:
        """Gradients are final: add the penalty's. Happens by itself before a step.

        Call it earlier where something must see the penalized gradient, such as clipping in a loop of your own.

        Args:
            optimizer: whose weights are meant.
            scale: the factor that gradients still carry from a gradient scaler.
        """
        self._steppers.find(optimizer).ready(scale)

    @torch.no_grad()
    def value(self) -> Tensor:
        """What the penalty would add to the loss now: a scalar, strengths included."""
        step = max(self.steps, default=0)
        values = [self.penalty.value(outputs_first(t, t.weight)) * self._strengths(t.name, step) for t in self.targets]
        return torch.stack([value.to(values[0]) for value in values]).sum()

    @torch.no_grad()
    def _before(self, stepper: Stepper, scale: Tensor | None) -> None:
        for target, _ in [] if self.proximal else stepper.owned():
            strength, gradient = self._strengths(target.name, stepper.steps), final(target.weight)
            if strength and gradient is not None:
                extra = self.penalty.gradient(outputs_first(target, target.weight.detach()))
                if scale is not None:
                    extra = extra * scale
                outputs_first(target, gradient).add_(extra, alpha=strength)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _after(self, stepper: Stepper) -> None:
        for target, group in stepper.owned() if self.proximal else []:
            strength = self._strengths(target.name, stepper.steps)
            if strength and final(target.weight) is not None:
                weight = outputs_first(target, target.weight)
                rate = group["lr"] * (_sum_of_steps(group) if self.momentum else 1.0)
                weight.copy_(self.penalty.prox(weight, rate * strength))


def _sum_of_steps(group: Group) -> float:
    """How far one gradient moves a weight under momentum, all its steps together, in units of ``lr``."""
    momentum = group.get("momentum", 0.0)
    return float((1 - group.get("dampening", 0.0)) / (1 - momentum)) if momentum else 1.0
