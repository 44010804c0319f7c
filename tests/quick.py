"""Every algorithm of the catalogue, set for runs of a few steps, and data for those that look at some first."""

import torch

from lightning_sparse import ACDC, L0, GlobalMagnitude, GraNet, GraSP, Periodic, SynFlow
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.latent import Latent

NAMES = list(ALGORITHMS)
LATENT = [name for name, cls in ALGORITHMS.items() if issubclass(cls, Latent)]
FIXED = ["static", "snip", "grasp", "synflow"]  # masks that never move


def quick(name: str, every: int, stop: int):
    """With updates every so many steps, the last at ``stop``."""
    own = {
        "acdc": lambda: ACDC(every=every, begin=every, stop=stop, last=every),
        "granet": lambda: GraNet(every=every, stop=stop, end=stop),
        "l0": lambda: L0(every=every, begin=0, stop=stop),
        "global_magnitude": lambda: GlobalMagnitude(rounds=2, stop=stop, rewind="init"),
        "grasp": lambda: GraSP(samples=None),
        "synflow": lambda: SynFlow(iterations=5),
    }
    cls = ALGORITHMS[name]
    return own[name]() if name in own else cls(every=every, stop=stop) if issubclass(cls, Periodic) else cls()


def data(*shape: int) -> dict[str, object]:
    """For an engine: two batches of inputs of that shape, a loss, and an example."""
    generator = torch.Generator().manual_seed(11)
    batches = [torch.randn(8, *shape, generator=generator) for _ in range(2)]
    loss = lambda model, x: (model(x) - 1).square().mean()  # noqa: E731
    return {"batches": batches, "loss": loss, "example_inputs": batches[0][:1]}
