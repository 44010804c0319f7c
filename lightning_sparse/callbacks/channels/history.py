"""What each cut took out of a model, and what an epoch cost before and after it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any


@dataclass
class Cut:
    """One cut.

    Attributes:
        epoch: epochs that had ended.
        step: optimizer steps taken.
        channels: of each axis, [before, after].
        params: of the model, [before, after].
        flops: forward, of one step's data, [before, after].
        seconds: of the epoch that ended before the cut, and of the first whole one after it; None where unknown.
    """

    epoch: int
    step: int
    channels: dict[str, list[int]]
    params: list[int]
    flops: list[float]
    seconds: list[float | None] = field(default_factory=lambda: [None, None])


class History:
    """All cuts of a run, with the time that epochs take.

    Attributes:
        cuts: in order.
    """

    def __init__(self) -> None:
        self.cuts: list[Cut] = []
        self._begun: float | None = None
        self._last: float | None = None

    def epoch_begins(self) -> None:
        """Take the time."""
        self._begun = perf_counter()

    def epoch_ends(self) -> str:
        """Take the time; returns what is to be said of it, where this was the first epoch after a cut."""
        if self._begun is None:
            return ""
        seconds, self._begun = perf_counter() - self._begun, None
        self._last, text = seconds, ""
        if self.cuts and self.cuts[-1].seconds[1] is None and self.cuts[-1].seconds[0] is not None:
            before = self.cuts[-1].seconds[0]
            self.cuts[-1].seconds[1] = seconds
            text = f"an epoch took {before:.3g} s before the last cut and takes {seconds:.3g} s now"
        return text

    def add(self, cut: Cut) -> None:
        """A cut was made; an epoch that it was made in has no time of its own."""
        cut.seconds = [self._last, None]
        self._begun = None
        self.cuts.append(cut)

    def channels(self) -> dict[str, tuple[int, int]]:
        """Of each axis that has lost some: how many channels are left, and how many there were at first."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for cut in self.cuts:
            for name, (before, after) in cut.channels.items():
                first.setdefault(name, before)
                last[name] = after
        return {name: (last[name], first[name]) for name in first if last[name] != first[name]}

    def share(self) -> float:
        """Channels of now, of all that could go before the first cut."""
        if not self.cuts:
            return 1.0
        return sum(now for _, now in self.cuts[-1].channels.values()) / sum(
            was for was, _ in self.cuts[0].channels.values()
        )

    def flops_share(self) -> float:
        """Forward FLOPs of now, of those before the first cut."""
        return self.cuts[-1].flops[1] / self.cuts[0].flops[0] if self.cuts and self.cuts[0].flops[0] else 1.0

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain containers."""
        return [asdict(cut) for cut in self.cuts]

    def load_state_dict(self, rows: list[Mapping[str, Any]]) -> None:
        """Go on from a checkpoint."""
        self.cuts = [Cut(**row) for row in rows]
