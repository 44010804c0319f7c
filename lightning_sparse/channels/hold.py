"""Channels that stay in the model as zeros while it is trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparse.channels.shrink import divides
from lightning_sparse.core.hooks import StepHooks, unwrap
from lightning_sparse.core.masks import all_bits, clear
from lightning_sparse.core.optstate import forget, mask_state, sweeps
from lightning_sparse.core.select import clean
from lightning_sparse.core.surgery import Cuts


class ChannelHold:
    """Keeps everything that belongs to some channels at zero, whatever an optimizer does: as if they were cut out.

    Gradients are masked before a step, weights after it, and the optimizer's state with them. It follows the
    optimizers by itself, in any loop.

    Args:
        model: any module.
        kept: indices that live, by parameter and dimension; names that are no parameters are left alone.

    Example:
        >>> model = nn.Linear(3, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> hold = ChannelHold(model, {"weight": {0: torch.tensor([0, 3])}, "bias": {0: torch.tensor([0, 3])}})
        >>> hold.attach(optimizer)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight != 0).any(1).tolist(), (model.bias != 0).tolist()
        ([True, False, False, True], [True, False, False, True])
    """

    def __init__(self, model: nn.Module, kept: Cuts) -> None:
        named: dict[str, Tensor] = {clean(name): weight for name, weight in model.named_parameters()}
        self._held: list[tuple[Tensor, Tensor]] = []
        for name in [name for name in named if name in kept]:
            dims = {dim: index for dim, index in kept[name].items() if not divides(named, name, dim)}
            self._held.append((named[name], _live(named[name], dims)))
        self._bits = {id(weight): all_bits(live, weight.dtype) for weight, live in self._held}
        self._hooks: dict[int, tuple[Optimizer, StepHooks]] = {}
        self.zero()

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; its present state is masked. Twice changes nothing."""
        optimizer = unwrap(optimizer)
        if id(optimizer) in self._hooks:
            return
        for weight, live in self._owned(optimizer):
            mask_state(optimizer, weight, live)
        forget(optimizer)
        hooks = StepHooks(optimizer, _nothing, lambda: self.mask(optimizer), lambda: self._after(optimizer))
        self._hooks[id(optimizer)] = (optimizer, hooks)

    def detach(self) -> None:
        """Let go of all optimizers."""
        for _, hooks in self._hooks.values():
            hooks.remove()
        self._hooks = {}

    @torch.no_grad()
    def mask(self, optimizer: Optimizer) -> None:
        """Gradients are final: zero those of the channels. Happens by itself before a step.

        Call it earlier where something must see masked gradients, such as clipping.
        """
        held = [weight for weight, _ in self._owned(unwrap(optimizer)) if weight.grad is not None]
        gradients = [weight.grad for weight in held if weight.grad is not None]
        clear(gradients, [self._bits[id(weight)] for weight in held])

    @torch.no_grad()
    def zero(self) -> None:
        """Zero the weights."""
        clear([weight for weight, _ in self._held], [self._bits[id(weight)] for weight, _ in self._held])

    def _after(self, optimizer: Optimizer) -> None:
        self.zero()
        if sweeps(optimizer):
            for weight, live in self._owned(optimizer):
                mask_state(optimizer, weight, live)

    def _owned(self, optimizer: Optimizer) -> Sequence[tuple[Tensor, Tensor]]:
        ids = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        return [(weight, live) for weight, live in self._held if id(weight) in ids]


def _live(weight: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Bool, True where no removed channel is."""
    live = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    for dim, index in dims.items():
        stays = torch.zeros(weight.shape[dim], dtype=torch.bool, device=weight.device)
        stays[index.to(weight.device)] = True
        live &= stays.view([-1 if d == dim else 1 for d in range(weight.ndim)])
    return live


def _nothing() -> None:
    """Before a closure."""
