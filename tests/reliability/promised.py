"""How many weights may live after each step: the formulas of the papers, restated for whole runs."""

from collections.abc import Sequence

from lightning_sparse import (
    ACDC,
    DSR,
    GMP,
    L0,
    MEST,
    SRSTE,
    STR,
    Algorithm,
    GlobalMagnitude,
    GraNet,
    SparseMomentum,
    TopKAST,
)


def keeps_layers(algorithm: Algorithm, together: bool) -> bool:
    """Whether the count of every layer is the same after every step; ``together``: layers compete for one budget."""
    moving = isinstance(algorithm, SparseMomentum | DSR | GMP | GlobalMagnitude | GraNet | ACDC | STR | L0)
    chosen_anew = together and isinstance(algorithm, TopKAST | SRSTE)
    return not moving and not chosen_anew and getattr(algorithm, "variant", "") != "em_s"


def totals(algorithm: Algorithm, step: int, sizes: Sequence[int], final: Sequence[int], together: bool) -> range:
    """The live weights that may be there after ``step``; one number where the schedule fixes it.

    Args:
        algorithm: planned: in steps.
        step: 0 before the first.
        sizes: of the layers.
        final: their planned counts.
        together: whether they compete for one budget.
    """
    whole, planned = sum(sizes), sum(final)
    if isinstance(algorithm, MEST) and algorithm.variant == "em_s":
        most = max(algorithm.fraction.at(i / 100) for i in range(101))
        return _only(planned) if step >= algorithm.stop else range(planned, int(planned * (1 + most) + 1e-6) + 1)
    if isinstance(algorithm, GMP | L0):
        at = _last_update(algorithm, step, int(algorithm.begin))
        return _only(_cubic(whole, planned, (at - algorithm.begin) / (algorithm.stop - algorithm.begin)))
    if isinstance(algorithm, STR):
        return _only(_cubic(whole, planned, _last_update(algorithm, step, 0) / algorithm.stop))
    if isinstance(algorithm, GraNet):
        first = min(max(round(algorithm.initial * whole), planned), whole)
        at = _last_update(algorithm, min(step, algorithm.end), int(algorithm.begin), algorithm.end)
        way = (at - algorithm.begin) / (algorithm.end - algorithm.begin)
        return _only(_cubic(first, planned, way))
    if isinstance(algorithm, ACDC):
        return _only(planned if algorithm.compressed(step) else whole)  # its phases are tested by hand
    if isinstance(algorithm, GlobalMagnitude):
        rounds = sum(step >= i * algorithm.stop // algorithm.rounds for i in range(1, algorithm.rounds + 1))
        share = rounds / algorithm.rounds
        if together:
            return _only(round(whole * (planned / whole) ** share))
        return _only(round(sum(n * (k / n) ** share for n, k in zip(sizes, final, strict=True))))
    return _only(planned)


def _only(count: int) -> range:
    return range(count, count + 1)


def _cubic(start: int, end: int, way: float) -> int:
    """Eq. 1 of Zhu & Gupta 2017."""
    return round(end + (start - end) * (1 - way) ** 3)


def _last_update(algorithm: Algorithm, step: int, begin: int, end: int = 0) -> int:
    """The last step, up to ``step``, that is a multiple of ``every`` or the end, after ``begin``; else ``begin``."""
    end = end or algorithm.stop
    return max([u for u in range(begin + 1, min(step, end) + 1) if u % algorithm.every == 0 or u == end], default=begin)
