"""What a long run holds, and how much more of it with every step."""

import gc
import sys
import tracemalloc
from array import array
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from torch import Tensor

import lightning_sparse

# What a step may add. Nothing leaks: 0, but a few bytes. One object a step: 1 object, 1 block, 60 bytes.
LIMITS = {"objects": 0.05, "tensors": 0.01, "blocks": 0.05, "bytes": 16.0, "line_bytes": 1.0}
WARM = 10  # the first tenth of a run fills caches
FRAMES = 8  # of a call stack that are looked through for the package


def more(values: Sequence[float], apart: int) -> float:
    """By how much values rise from one to the next: the median over all pairs a quarter of the run apart.

    One jump falls into a third of these pairs, and so changes nothing; what rises all the time is in all of them.

    Args:
        values: readings at equal distances.
        apart: steps between two of them.

    Example:
        >>> more([7, 7, 7, 7, 7, 90, 90, 90], 100), more([0, 50, 100, 150, 200, 250, 300, 350], 100)
        (0.0, 0.5)
    """
    lag = max(1, len(values) // 4)
    return median((late - early) / (lag * apart) for early, late in zip(values, values[lag:], strict=False))


def resident() -> int:
    """Bytes of the process in memory; 0 where the system does not say."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if sys.platform == "linux" else 0


def tidy() -> None:
    """Collect garbage, and forget Python's cache of attributes: it keeps up to 4,096 names that C++ code has made."""
    gc.collect()
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()


def counted() -> tuple[int, int, int]:
    """Objects and tensors that the garbage collector knows and did not freeze, and blocks of Python's allocator."""
    tidy()
    blocks = sys.getallocatedblocks()
    found = gc.get_objects()
    return len(found), sum(issubclass(type(thing), Tensor) for thing in found), blocks


class Gauge:
    """Reads what a run holds, forty times; keeps its readings in arrays, which hold no objects.

    Args:
        steps: of the whole run, 40 or more.
    """

    def __init__(self, steps: int) -> None:
        self._each, self._done = steps // 40, 0
        self._counts = [array("q", [0]) * 40 for _ in range(3)]
        self._bytes = array("q", [0]) * 400
        gc.collect()
        gc.freeze()  # what was there before is not looked at again

    def look(self, step: int) -> None:
        """After every step, from 1."""
        window, inside = divmod(step - 1, self._each)
        if window >= 40:
            return
        if (inside + 1) % max(1, self._each // 10) == 0 and inside * 10 // self._each < 10:
            self._bytes[10 * window + inside * 10 // self._each] = resident()
        if inside == self._each - 1:
            for row, count in zip(self._counts, counted(), strict=True):
                row[window] = count

    def growth(self) -> dict[str, float]:
        """Objects, tensors, blocks and bytes more a step; of the bytes, medians of ten readings count."""
        gc.unfreeze()
        held = [median(value for value in self._bytes[10 * i : 10 * i + 10] if value) for i in range(40)]
        rows = dict(zip(("objects", "tensors", "blocks", "bytes"), [*map(list, self._counts), held], strict=True))
        return {name: more(row[40 // WARM :], self._each) for name, row in rows.items()}


class Lines:
    """Follows what the package's lines hold, and all that they call, from one late point of a run to another.

    Args:
        others: files that count as the package does.
    """

    def __init__(self, *others: str) -> None:
        package = str(Path(lightning_sparse.__file__).parent / "*")
        self._filters = [tracemalloc.Filter(True, name, all_frames=True) for name in (package, *others)]
        tracemalloc.start(FRAMES)

    def mark(self) -> None:
        """The first point."""
        self._first = self._now()

    def grown(self, steps: int) -> float:
        """Bytes more a step, ``steps`` after :meth:`mark`, at the line that grew the most."""
        changed = self._now().compare_to(self._first, "lineno")
        tracemalloc.stop()
        return max((line.size_diff for line in changed), default=0) / steps

    def _now(self) -> tracemalloc.Snapshot:
        tidy()
        return tracemalloc.take_snapshot().filter_traces(self._filters)


def leaks(row: dict[str, float]) -> list[str]:
    """Which of the figures are above their limits."""
    return [name for name, limit in LIMITS.items() if name in row and row[name] > limit]
