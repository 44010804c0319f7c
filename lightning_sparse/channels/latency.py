"""How long a model runs with fewer channels: tried out on the device at hand, and undone."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from lightning_sparse.channels.atoms import Graph, Kept
from lightning_sparse.channels.journal import undoable
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.core.probe import eval_mode, untouched_randomness


@dataclass(frozen=True)
class Trial:
    """One cut that was tried.

    Attributes:
        channels: share of the channels that stayed.
        before: median seconds of a run of the whole model, in between the runs of the cut one.
        after: median seconds of a run of the cut model.
    """

    channels: float
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """Of the time that is left."""
        return self.after / self.before


@dataclass(frozen=True)
class Latency:
    """What was measured, and where.

    Attributes:
        chosen: the trial whose channels are taken.
        trials: all of them, in order.
        device: that it was measured on.
        runs: timed runs behind each median.

    Example:
        >>> trial = Trial(channels=0.4, before=0.020, after=0.009)
        >>> print(Latency(trial, (trial,), "cpu, 2 threads", 15))
        latency 20 ms -> 9 ms (45%) with 40% of the channels
        (medians of 15 interleaved runs on cpu, 2 threads; 1 cut tried)
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    device: str
    runs: int

    def __str__(self) -> str:
        """In a line."""
        best, cuts = self.chosen, "1 cut" if len(self.trials) == 1 else f"{len(self.trials)} cuts"
        return (
            f"latency {best.before * 1e3:.3g} ms -> {best.after * 1e3:.3g} ms ({best.ratio:.0%}) with "
            f"{best.channels:.0%} of the channels "
            f"(medians of {self.runs} interleaved runs on {self.device}; {cuts} tried)"
        )


class Stopwatch:
    """Times a model against itself with fewer channels: runs of both in turns, so that other load hits both alike.

    The model runs in evaluation mode without gradients, on whatever ``run`` gives it; each block begins with a run that
    is not timed.

    Args:
        model: any module.
        graph: of this model.
        run: calls the model.
        rounds: how often the two take turns.
        repeats: timed runs in a turn.
        clock: seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        run: Callable[[], Any],
        *,
        rounds: int = 3,
        repeats: int = 5,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.model, self.graph, self.run = model, graph, run
        self.rounds, self.repeats, self.clock = rounds, repeats, clock
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @property
    def runs(self) -> int:
        """Timed runs behind each median."""
        return self.rounds * self.repeats

    @property
    def where(self) -> str:
        """The device, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return (
            f"{self.device.type}, {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)
        )

    def time(self, kept: Kept) -> Trial:
        """Cut, run, undo; the model is afterwards as it was."""
        before: list[float] = []
        after: list[float] = []
        with eval_mode(self.model), untouched_randomness(), torch.no_grad():
            for _ in range(self.rounds):
                before += self._seconds()
                with undoable(self.model):
                    shrink(self.model, self.graph, kept)
                    after += self._seconds()
        total = sum(atom.channels for atom in self.graph.atoms if atom.name in kept)
        share = sum(len(index) for index in kept.values()) / max(1, total)
        return Trial(share, median(before), median(after))

    def _seconds(self) -> list[float]:
        self.run()
        found = []
        for _ in range(self.repeats):
            self._wait()
            start = self.clock()
            self.run()
            self._wait()
            found.append(self.clock() - start)
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
