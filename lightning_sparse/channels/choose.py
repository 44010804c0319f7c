"""Scores become a decision: which channels stay, in exact numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import torch
from torch import Tensor

from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.options import Choice, Scope
from lightning_sparse.channels.prices import Prices
from lightning_sparse.core.errors import raise_problems

_NOISE = Fraction(1, 10**9)  # shares are floats


@dataclass(frozen=True)
class Axis:
    """How many channels of an axis may stay: ``least``, multiples of ``unit`` above it, or all.

    Example:
        >>> axis = Axis(size=20, least=8, unit=8)
        >>> [axis.nearest(count) for count in (0, 11, 12, 17, 18, 20)]
        [8, 8, 16, 16, 20, 20]
    """

    size: int
    least: int
    unit: int

    def nearest(self, count: float) -> int:
        """The count allowed that is nearest; of two the larger."""
        below = min(self.size, max(self.least, floor(count) // self.unit * self.unit))
        above = self.next(below)
        return above if above - count <= count - below else below

    def next(self, count: int) -> int:
        """The next larger count allowed; the size has none."""
        return min(self.size, (count // self.unit + 1) * self.unit)


def choose(
    graph: Graph,
    scores: Mapping[str, Tensor],
    sizes: Mapping[str, Sequence[int]],
    choice: Choice,
    *,
    step: int = 8,
) -> dict[str, Tensor]:
    """The channels that stay, by axis: those of highest score, ties to the lower index.

    Under ``scope="global"`` all channels compete, and with ``target="channels"`` and ``round_to=1`` the total is exact:
    ``keep`` times all channels that have scores, rounded. Under ``"layer"`` every axis keeps the same share, or the
    count nearest to it that is allowed, whatever the others do. FLOPs and parameters are those of the whole model, also
    of what cannot be cut; the nearest number that can be had is taken, as it is with multiples. What is chosen at a
    smaller ``keep`` is always a part of what is chosen at a larger one.

    Args:
        graph: of the model.
        scores: by axis, real [channels]; infinite where a channel must stay. Axes that are missing stay whole.
        sizes: shapes of the model's parameters.
        choice: how many stay, and who competes with whom; not by latency.
        step: what the device computes in, see :func:`~lightning_sparse.channels.options.device_step`.

    Returns:
        Ascending int64 indices for each axis that has scores.

    Raises:
        ValueError: on a wrong choice, scores that are NaN, or a target that cannot be met, with the least that can.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom, Place
        >>> index = torch.arange(4)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> sizes = {"0.weight": (4, 3), "1.weight": (2, 4)}
        >>> graph = Graph((atom,), {}, {}, {}, sizes)
        >>> choose(graph, {"0": torch.tensor([1.0, 4.0, 2.0, 3.0])}, sizes, Choice(keep=0.5))
        {'0': tensor([1, 3])}
    """
    raise_problems(choice.problems(), "channels")
    if choice.target == "latency":
        raise ValueError("latency is measured, not computed: call decide(), which has the model to measure")
    if nan := [name for name, score in scores.items() if bool(score.isnan().any())]:
        raise ValueError(f"scores are NaN in {', '.join(nan)}: so are the weights or what was gathered of them")
    axes = {name: axis(score, choice, step) for name, score in scores.items()}
    keep, scope, target = choice.keep, choice.scope, choice.target
    if choice.threshold is not None:
        counts = {name: axes[name].nearest(int((score > choice.threshold).sum())) for name, score in scores.items()}
    else:
        prices = Prices(graph, sizes)
        measures: dict[str, Callable[[dict[str, int]], float]] = {"flops": prices.flops, "params": prices.params}
        counts = _fit(scores, axes, keep, scope, measures.get(target), f"keep={keep:g} of the {target}")
        if scope == "layer" and target == "channels":  # what rounding gives one axis is not taken from another
            counts = {name: own.nearest(float(Fraction(float(keep)) * own.size)) for name, own in axes.items()}
    return {name: top(score, counts[name]) for name, score in scores.items()}


def axis(score: Tensor, choice: Choice, step: int) -> Axis:
    """The counts allowed for an axis with these scores.

    Example:
        >>> axis(torch.zeros(64), Choice(round_to=None, cap=0.9), step=16)
        Axis(size=64, least=8, unit=8)
    """
    size = len(score)
    unit = choice.round_to or min(step, 1 << max(0, (size // 8).bit_length() - 1))
    capped = 0 if choice.cap is None else ceil(size * (1 - Fraction(float(choice.cap))) - _NOISE)
    least = max(1, choice.min_channels, capped, int(score.isposinf().sum()))
    return Axis(size, min(size, ceil(least / unit) * unit), unit)


def top(score: Tensor, count: int) -> Tensor:
    """Where the ``count`` highest scores are, ascending; of equals the first.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([1, 2])
    """
    return score.argsort(descending=True, stable=True)[:count].sort().values


def _fit(
    scores: Mapping[str, Tensor],
    axes: Mapping[str, Axis],
    keep: float,
    scope: Scope,
    measure: Callable[[dict[str, int]], float] | None,
    asked: str,
) -> dict[str, int]:
    """Counts whose measure is nearest to the share that is asked for.

    All channels stand in one queue; the counts are those of a prefix of it, rounded to what each axis allows.
    """
    queue = _queue(scores, scope)

    def counts(taken: int) -> dict[str, int]:
        found = torch.bincount(queue[:taken], minlength=len(axes)).tolist()
        return {name: own.nearest(n) for (name, own), n in zip(axes.items(), found, strict=True)}

    value = measure or (lambda found: sum(found.values()))
    least, most = counts(0), counts(len(queue))
    whole = value(most)
    want = floor(Fraction(float(keep)) * len(queue) + Fraction(1, 2) + _NOISE) if measure is None else keep * whole
    steps = [value({**least, name: axes[name].next(n)}) - value(least) for name, n in least.items() if n < most[name]]
    if value(least) - want > min(steps, default=0.0) / 2:
        share = ceil(value(least) / whole * 1e4) / 1e4
        raise ValueError(
            f"{asked} cannot be met: at least {share:g} stays, for floors (min_channels, cap, round_to) and what "
            f"cannot be cut; ask for keep >= {share:g}, or lower the floors"
        )
    low, high = 0, len(queue)
    if value(least) >= want or not len(queue):
        return least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(counts(middle)) <= want else (low, middle)
    under, over = counts(low), counts(high)
    return over if value(over) - want < want - value(under) else under


def _queue(scores: Mapping[str, Tensor], scope: Scope) -> Tensor:
    """The axis (by position) that each channel belongs to, those first that stay longest.

    Within a layer the channel of rank j stays while the share times the size rounds to more than j: ordered by
    (j + 1/2) / size, every prefix gives each axis its share to the nearest integer (Webster's apportionment).
    """
    owner = torch.cat([torch.full((len(score),), i) for i, score in enumerate(scores.values())] or [torch.empty(0)])
    if scope == "global":
        keys = torch.cat([score.double() for score in scores.values()] or [torch.empty(0)])
        return owner.long()[keys.argsort(descending=True, stable=True)]
    keys = torch.cat([(torch.arange(len(s)).double() + 0.5) / len(s) for s in scores.values()] or [torch.empty(0)])
    return owner.long()[keys.argsort(stable=True)]
