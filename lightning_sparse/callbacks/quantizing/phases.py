"""When a run is quantized: from some step on, or only at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.callbacks.run import horizon
from lightning_sparse.core.values import is_whole

_FREE = 5  # bits from which quantization after training loses nothing


@dataclass(frozen=True)
class Phases:
    """The phases of one run.

    Attributes:
        step: optimizer steps after which training is quantized; None where epochs say it.
        epoch: epochs after which it is; None where steps say it.
        total: optimizer steps of the run; None where unknown.

    Example:
        >>> phases = Phases(step=6, epoch=None, total=10)
        >>> phases.due(0, 5), phases.due(0, 6), phases.resting(8, begun=6), phases.resting(9, begun=6)
        (False, True, False, True)
    """

    step: int | None
    epoch: int | None
    total: int | None

    @property
    def trains(self) -> bool:
        """Whether there is quantized training at all."""
        return self.step is not None or self.epoch is not None

    def due(self, epochs: int, steps: int) -> bool:
        """Whether it has come to that."""
        if self.step is not None:
            return steps >= self.step
        return self.epoch is not None and epochs >= self.epoch

    def resting(self, steps: int, begun: int) -> bool:
        """Whether ranges rest: for the last quarter of the quantized steps."""
        return self.total is not None and steps >= begun + ceil(0.75 * (self.total - begun))


def phases(name: str, at: float | int | None, bits: int | Mapping[str, int | None] | str, trainer: Any) -> Phases:
    """Of a Trainer's run.

    Raises:
        MisconfigurationException: if a share of it is asked for and its length is unknown.
    """
    total = horizon(trainer)[0]
    if at is None and not isinstance(bits, str):
        wanted = bits.values() if isinstance(bits, Mapping) else [bits]
        if all(each is None or each >= _FREE for each in wanted):
            return Phases(None, None, total)
    if is_whole(at) and at is not None:
        return Phases(None, int(at), total)
    share = 0.75 if at is None else at
    if total is None:
        raise MisconfigurationException(
            f"{name}: training is quantized after {share:g} of the run, whose length is unknown; give at= in epochs"
        )
    return Phases(ceil(share * total - 1e-9), None, total)
