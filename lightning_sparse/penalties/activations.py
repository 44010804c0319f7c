"""Penalties on what modules put out, paid in the backward pass that goes through it."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.core.errors import collecting, raise_problems
from lightning_sparse.penalties.base import Penalty, wide
from lightning_sparse.penalties.choose import argument_problems, chosen_activations
from lightning_sparse.penalties.steps import Steppers
from lightning_sparse.penalties.strength import Strength, Strengths


class ActivationRegularizer:
    """Adds a penalty on outputs of modules to the gradient that flows through them.

    The penalty of a module is that of each sample (dimension 0 of its output), averaged over the batch, as losses are.
    A hook on the output adds the penalty's gradient to the loss's own where the two meet: the same numbers as with a
    loss that has the penalty in it, but the loss stays the task's, and any loss will do. Each output pays once, in the
    first backward pass that reaches it; what does not lead to the loss, or needs no gradient, does not pay. Compiled
    models are compiled anew, with a break at each of the modules.

    Args:
        model: any module.
        penalty: what is paid.
        strength: a number, a schedule over the run, or one for each glob over names; the first that matches counts.
        optimizers: those whose steps a schedule counts; not needed for a number.
        include: globs over module names; None takes ReLU and its like.
        exclude: globs of what stays free.
        total_steps: optimizer steps of the run, for schedules.
        steps: counts of an earlier run to go on from, as :attr:`steps` gave them.

    Attributes:
        modules: what is penalized, by name.
        factor: what the loss of a backward pass was multiplied with (``scaler.get_scale()``, one over the batches that
            are accumulated); None lets a backward pass go by unpenalized.
        seen: outputs that can pay, since the count was last set to 0.

    Raises:
        ValueError: if nothing matches, the penalty does not fit, a strength is negative ...; all at once.

    Example:
        >>> from lightning_sparse.penalties import L1
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> _ = nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
        >>> regularizer = ActivationRegularizer(model, L1(), 0.5)
        >>> model(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).mul(0).sum().backward()
        >>> model[0].weight.grad.tolist()  # half of the mean input
        [[1.0, 1.5]]
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        strength: Strength = 1e-4,
        *,
        optimizers: Iterable[Optimizer] = (),
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        total_steps: int | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        self.penalty = penalty
        problems = argument_problems(penalty, strength, "activations", False, include, exclude)
        raise_problems(problems, type(self).__name__)
        self.modules: dict[str, nn.Module] = {}
        with collecting(problems):
            self.modules = chosen_activations(model, include, exclude)
        with collecting(problems):
            self._strengths = Strengths(strength, list(self.modules), total_steps)
        raise_problems(problems, type(self).__name__)
        self.factor: float | Tensor | None = 1.0
        self.seen = 0
        self._measuring, self._values = False, list[Tensor]()
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # what was compiled before would run without the hooks, and not notice
        self._steppers = Steppers([], lambda stepper, scale: None, lambda stepper: None, steps)
        self._handles = [module.register_forward_hook(self._watch(name)) for name, module in self.modules.items()]
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
        """Count the steps of an optimizer; attaching twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if it is LBFGS with a line search, which would compare losses without the penalty.
        """
        self._steppers.attach(optimizer)

    def detach(self) -> None:
        """Take all hooks off; counts stay."""
        self._steppers.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def measure(self, on: bool) -> None:
        """Begin to keep, or not to keep, what outputs pay in the backward passes to come."""
        self._measuring, self._values = on, []

    def value(self) -> Tensor:
        """What the penalty would have added to the loss of the backward passes that were measured: a scalar."""
        values = self._values or [torch.zeros(())]
        return torch.stack([value.to(values[0]) for value in values]).sum()

    def _watch(self, name: str) -> Any:
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._penalize(name, output)

        return hook

    def _penalize(self, name: str, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim == 0:
            raise ValueError(
                f"{name} puts out {type(output).__name__}, not a tensor of samples; exclude it, or name a module inside"
            )
        strength = self._strengths(name, max(self.steps, default=0))
        self.seen += output.requires_grad
        if strength and output.requires_grad and output.shape[0]:
            output.register_hook(self._payer(name, output.detach(), strength))  # type: ignore[no-untyped-call]

    def _payer(self, name: str, kept: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
        """What adds the gradient of the penalty on ``kept`` to the gradient that arrives there; once."""
        version, paid = kept._version, False

        def pay(gradient: Tensor) -> Tensor:
            nonlocal paid
            if paid or self.factor is None:
                return gradient
            if kept._version != version:
                raise RuntimeError(
                    f"what {name} put out was changed in place, so its penalty is unknown; exclude it, or make the "
                    "operation that follows it not in place"
                )
            paid = True
            samples = wide(kept)  # half precision would lose a small strength shared by a large batch
            if self._measuring:
                self._values.append(torch.vmap(self.penalty.value)(samples).mean() * strength)
            extra = torch.vmap(self.penalty.gradient)(samples) * (strength / len(samples)) * self.factor
            return gradient + extra.to(gradient.dtype)

        return pay
