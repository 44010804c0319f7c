"""How a total density is shared out over layers, in exact integers."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor, log10, prod
from typing import Literal

from torch import Size

AllocationName = Literal["uniform", "er", "erk", "global"]
Shares = dict[str, float]
_DIGITS = 9  # remainders that agree in as many are equal: shares that were computed in floats carry noise
_NOISE = Fraction(1, 10**_DIGITS)


def uniform(shapes: Mapping[str, Size], density: float) -> Shares:
    """The same density in every layer.

    Example:
        >>> uniform({"a": Size([10, 10]), "b": Size([4, 4])}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """
    return dict.fromkeys(shapes, density)


def er(shapes: Mapping[str, Size], density: float) -> Shares:
    """Erdos-Renyi: density proportional to (inputs + outputs) / (inputs * outputs); kernel sizes do not count.

    Source: Mocanu et al. 2018, https://doi.org/10.1038/s41467-018-04316-3, eq. 1, with the constant chosen so that the
    total is met.

    Example:
        >>> er({"a": Size([100, 100]), "b": Size([10, 10])}, 0.05)
        {'a': 0.045909..., 'b': 0.459090...}
    """
    return _proportional(shapes, density, {name: sum(s[:2]) / prod(s[:2]) for name, s in shapes.items()})


def erk(shapes: Mapping[str, Size], density: float) -> Shares:
    """Erdos-Renyi-Kernel: density proportional to the sum over the product of all dimensions of the weight.

    Small layers stay denser, large ones get sparser; a layer that would pass 1 is dense and the rest share what is
    left. Source: Evci et al. 2020, https://arxiv.org/abs/1911.11134, section 3, and the authors'
    ``get_sparsities_erdos_renyi``.

    Args:
        shapes: of every weight, outputs first.
        density: live share of all weights together, in (0, 1].

    Returns:
        The density of every layer; ``sum(density * size)`` is the budget.

    Example:
        >>> lenet = {"fc1": Size([300, 784]), "fc2": Size([100, 300]), "fc3": Size([10, 100])}
        >>> {name: round(share, 6) for name, share in erk(lenet, 0.05).items()}
        {'fc1': 0.038484, 'fc2': 0.111334, 'fc3': 0.918507}
    """
    return _proportional(shapes, density, {name: sum(s) / prod(s) for name, s in shapes.items()})


def _proportional(shapes: Mapping[str, Size], density: float, raw: Mapping[str, float]) -> Shares:
    sizes = {name: s.numel() for name, s in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        free = [name for name in shapes if name not in dense]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(raw[name] * sizes[name] for name in free)
        top = max(raw[name] for name in free)
        if top * scale <= 1:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense |= {name for name in free if raw[name] == top}  # every layer tied at the maximum, as the authors do
    return dict.fromkeys(shapes, 1.0)


# "global" has no shares of its own: layers compete for one budget, by score; until then they are equals.
ALLOCATIONS: dict[AllocationName, Callable[[Mapping[str, Size], float], Shares]] = {
    "uniform": uniform,
    "er": er,
    "erk": erk,
    "global": uniform,
}


def apportion(shares: Sequence[float], total: int, upper: Sequence[int], lower: int = 0) -> list[int]:
    """Integers close to ``shares`` that sum to exactly ``total``, each within its bounds (largest remainder).

    Of equal remainders the first are rounded up, on every machine alike: the arithmetic is exact.

    Args:
        shares: real numbers, not negative; only their proportions count where they do not sum to ``total``.
        total: the exact sum of the result.
        upper: greatest value of each.
        lower: least value of each (or its upper bound, where that is smaller).

    Raises:
        ValueError: if the bounds do not admit ``total``.

    Example:
        >>> apportion([0.4, 0.4, 9.2], 10, upper=[5, 5, 9])
        [1, 0, 9]
        >>> apportion([1.0, 0.0, 3.0], 8, upper=[8, 8, 4])
        [4, 0, 4]
    """
    least = [min(lower, u) for u in upper]
    if not sum(least) <= total <= sum(upper):
        raise ValueError(f"cannot share {total} over {len(upper)} layers that take {sum(least)} to {sum(upper)}")
    exact = _fill(shares, total, least, upper)
    counts = [min(u, max(lo, floor(x + _NOISE))) for x, lo, u in zip(exact, least, upper, strict=True)]
    order = _by_remainder(counts, exact, [1] * len(counts))
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        for i in order if missing > 0 else reversed(order):
            if missing and (counts[i] < upper[i] if step > 0 else counts[i] > least[i]):
                counts[i] += step
                missing -= step
    return counts


def deal(
    shares: Sequence[float], total: int, lower: Sequence[int], upper: Sequence[int], units: Sequence[int]
) -> list[int]:
    """Multiples of ``units`` close to ``shares``, with a sum as close to ``total`` as that allows.

    A layer is less than one unit above or below its share. The largest remainders are rounded up as long as they fit;
    then, if that brings the sum nearer, one more. So the sum misses ``total`` by at most half of the smallest unit that
    was not rounded up; with equal units it is exact, or the nearest multiple.

    Args:
        shares: real numbers, not negative; only their proportions count where they do not sum to ``total``.
        total: the sum to come close to.
        lower: least value of each, a multiple of its unit.
        upper: greatest value of each, a multiple of its unit.
        units: positive.

    Raises:
        ValueError: if the bounds do not admit ``total``.

    Example:
        >>> deal([10.0, 21.0, 9.0], 40, lower=[4, 5, 1], upper=[40, 50, 9], units=[4, 5, 1])
        [12, 20, 9]
    """
    if not sum(lower) <= total <= sum(upper):
        raise ValueError(f"cannot share {total} over {len(upper)} layers that take {sum(lower)} to {sum(upper)}")
    exact = _fill(shares, total, lower, upper)
    bounds = list(zip(exact, lower, upper, units, strict=True))
    counts = [min(hi, max(lo, floor(x / unit + _NOISE) * unit)) for x, lo, hi, unit in bounds]
    order = _by_remainder(counts, exact, units)
    low = [i for i in order if counts[i] + units[i] <= upper[i]]
    missing = total - sum(counts)
    for i in list(low):
        if units[i] <= missing:
            counts[i] += units[i]
            missing -= units[i]
            low.remove(i)
    if low and units[smallest := min(low, key=lambda i: units[i])] < 2 * missing:
        counts[smallest] += units[smallest]
    return counts


def _by_remainder(counts: Sequence[int], exact: Sequence[Fraction], units: Sequence[int]) -> list[int]:
    """Positions, those with most left over first; of equals the first."""
    left = [round(float((x - n) / unit), _DIGITS) for n, x, unit in zip(counts, exact, units, strict=True)]
    return sorted(range(len(left)), key=lambda i: (-left[i], i))


def _fill(shares: Sequence[float], total: int, lower: Sequence[int], upper: Sequence[int]) -> list[Fraction]:
    """Numbers proportional to ``shares`` inside the bounds that sum to ``total``: what overflows is shared on."""
    parts = [Fraction(float(share)) for share in shares]  # numpy's numbers too
    fixed: dict[int, Fraction] = {}
    while True:
        free = [i for i in range(len(parts)) if i not in fixed]
        left = total - sum(fixed.values(), Fraction())
        weight = sum((parts[i] for i in free), Fraction())
        want = {i: (left * parts[i] / weight if weight > 0 else left / len(free)) for i in free}
        over = {i: Fraction(upper[i]) for i in free if want[i] > upper[i]}
        under = {i: Fraction(lower[i]) for i in free if want[i] < lower[i]}
        excess = sum(want[i] - over[i] for i in over) - sum(under[i] - want[i] for i in under)
        clipped = over if excess > 0 else under if excess < 0 else {**over, **under}
        if not clipped:
            return [fixed[i] if i in fixed else want[i] for i in range(len(parts))]
        fixed |= clipped
        if len(fixed) == len(parts):
            return [fixed[i] for i in range(len(parts))]


def least_density(sizes: Sequence[int], least: int | None = None) -> float:
    """The smallest density that leaves every layer one live weight (or ``least`` in all), rounded up to four digits.

    Example:
        >>> least_density([75, 25]), least_density([700, 23])
        (0.02, 0.002767)
    """
    exact = (len(sizes) if least is None else least) / sum(sizes)
    unit = 10 ** (floor(log10(exact)) - 3)
    return float(f"{ceil(exact / unit - 1e-9) * unit:.12g}")
