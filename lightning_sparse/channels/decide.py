"""From scores to the channels that stay, whatever the target."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.choose import axis, choose
from lightning_sparse.channels.latency import Latency, Stopwatch, Trial
from lightning_sparse.channels.options import Choice, Target, device_step
from lightning_sparse.channels.parts import parameter_shapes
from lightning_sparse.core.errors import raise_problems

_TRIALS = 8  # halvings of what is left to decide: to a hundredth of the channels
_TOLERANCE = 0.02  # of the whole latency: nearer than that is noise

Chosen = dict[str, Tensor]


@dataclass(frozen=True)
class Decision:
    """The channels that stay, and how that was found.

    Attributes:
        kept: ascending int64 indices, for each axis that has scores.
        latency: what was measured, for ``target="latency"``.
    """

    kept: Chosen
    latency: Latency | None = None


def decide(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor],
    run: Callable[[], Any],
    choice: Choice,
    *,
    stopwatch: Stopwatch | None = None,
) -> Decision:
    """The channels that stay; the model is as it was afterwards.

    ``target="latency"`` cuts the model on trial, times it beside the whole one, undoes the cut, and halves the range of
    channel counts until the ratio of the medians is nearest to ``keep``. Everything else is :func:`choose`.

    Args:
        model: any module, on the device that it is to run on.
        graph: of this model.
        scores: by axis; those that are missing stay whole.
        run: calls the model on what is to be timed.
        choice: how many stay, and who competes with whom.
        stopwatch: how to time; None takes 3 turns of 5 runs.

    Raises:
        ValueError: on a wrong choice, or a target that cannot be met, with the least that can.
    """
    raise_problems(choice.problems(), "channels")
    if not scores:
        return Decision({})
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    step, sizes = device_step(device), parameter_shapes(model)

    def ask(share: float, of: Target = "channels") -> Chosen:
        return choose(graph, scores, sizes, replace(choice, keep=share, target=of), step=step)

    if choice.target != "latency" or choice.threshold is not None or choice.keep == 1:
        return Decision(ask(choice.keep, "channels" if choice.target == "latency" else choice.target))
    axes = [axis(score, choice, step) for score in scores.values()]
    least = sum(own.least for own in axes) / sum(own.size for own in axes)
    return _by_latency(ask, least, choice.keep, stopwatch or Stopwatch(model, graph, run))


def _by_latency(ask: Callable[[float], Chosen], least: float, keep: float, watch: Stopwatch) -> Decision:
    """Bisect the share of channels until the ratio of latencies is ``keep``."""
    tried: list[tuple[Trial, Chosen]] = []

    def ratio(share: float) -> float:
        kept = ask(share)
        tried.append((watch.time(kept), kept))
        return tried[-1][0].ratio

    low, high = least, 1.0
    lowest = ratio(low)
    if lowest > keep + _TOLERANCE:
        raise ValueError(
            f"keep={keep:g} of the latency cannot be met: with the fewest channels allowed {lowest:.2f} of it stays on "
            f"{watch.where}; ask for more, or lower the floors (min_channels, cap, round_to)"
        )
    for _ in range(_TRIALS - 1):
        if abs(tried[-1][0].ratio - keep) < _TOLERANCE / 4:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) <= keep else (low, middle)
    best, kept = min(tried, key=lambda pair: abs(pair[0].ratio - keep))
    return Decision(kept, Latency(best, tuple(trial for trial, _ in tried), watch.where, watch.runs))
