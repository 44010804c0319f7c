"""A small model whose masks move after every step of a plain loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lightning_sparse import DSR, GMP, L0, STR, Algorithm, ConstantSchedule, RigL, SparseMomentum, Sparsifier
from lightning_sparse.core.algorithm import Masks
from lightning_sparse.core.param import SparseParam

SIZES, LIVE = (96, 48), (24, 12)  # weights of the two layers, and those that live in the end
RAMPS = ("gmp", "str", "l0")


@dataclass(frozen=True)
class Leaky(RigL):
    """A control: RigL that keeps something of every step.

    Args:
        keeps: what that is.
    """

    keeps: str = "mask"
    kept: ClassVar[list[Any]] = []

    def update(self, params: list[SparseParam], step: int) -> Masks:
        """RigL's."""
        self.kept.append({"mask": params[0].mask.clone, "object": list, "number": lambda: float(step)}[self.keeps]())
        return super().update(params, step)


ALGORITHMS: dict[str, Callable[[int], Algorithm]] = {
    "rigl": lambda steps: RigL(every=1, stop=steps, fraction=ConstantSchedule(0.3)),
    "sparse_momentum": lambda steps: SparseMomentum(every=1, stop=steps),
    "gmp": lambda steps: GMP(every=1, stop=steps),
    "dsr": lambda steps: DSR(every=1, stop=steps, threshold=0.02),
    "str": lambda steps: STR(every=1, stop=steps),
    "l0": lambda steps: L0(every=1, begin=0, stop=steps),
}
_KEPT = {"leak of a mask a step": "mask", "leak of an object a step": "object", "leak of a number a step": "number"}
CONTROLS: dict[str, Callable[[int], Algorithm]] = {
    name: lambda steps, kept=kept: Leaky(every=1, stop=steps, keeps=kept)  # type: ignore[misc]
    for name, kept in _KEPT.items()
}


def right(name: str, step: int, steps: int, counts: list[int]) -> bool:
    """Whether as many weights live after a step as were promised."""
    if name in RAMPS:  # eq. 1 of Zhu & Gupta 2017, to the nearest integer
        wanted = sum(LIVE) + (sum(SIZES) - sum(LIVE)) * (1 - step / steps) ** 3
        return abs(sum(counts) - wanted) < 0.5001
    return sum(counts) == sum(LIVE) if name in ("sparse_momentum", "dsr") else tuple(counts) == LIVE


def network() -> nn.Sequential:
    """Two layers; the same weights at every call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


class Loop:
    """A loop without Lightning; without an algorithm, that of the dense model."""

    def __init__(self, name: str = "", steps: int = 0) -> None:
        self.name, self.steps, self.net = name, steps, network()
        self.optimizer = sgd(self.net)
        self.x, self.y = torch.randn(32, 4, 8), torch.randn(32, 4, 4)
        if name:
            wanted = {**ALGORITHMS, **CONTROLS}[name](steps)
            asked: dict[str, Any] = {"allocation": "uniform", "total_steps": steps}
            self.sparsifier = Sparsifier(self.net, wanted, 0.25, optimizers=[self.optimizer], **asked)

    def step(self, step: int) -> None:
        """From 1."""
        self.optimizer.zero_grad()
        (self.net(self.x[step % 32]) - self.y[step % 32]).square().mean().backward()
        self.optimizer.step()

    def right(self, step: int) -> bool:
        """Whether counts after a step are those promised."""
        counts = [int(mask.count_nonzero()) for mask in self.sparsifier.masks.values()]
        return right(self.name, step, self.steps, counts)
