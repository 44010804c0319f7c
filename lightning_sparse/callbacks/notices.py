"""What a MaskUpdater tells its user when a fit starts."""

from collections.abc import Sequence
from typing import Any

from lightning_sparse.callbacks.base import rank_zero_info, rank_zero_warn
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.sparsifier import Sparsifier


def announce(name: str, sparsifier: Sparsifier, dense: Sequence[str]) -> None:
    """Say how much is live, now and in the end, and which weights stay dense unasked."""
    live, size = sum(p.live for p in sparsifier.params.values()), sparsifier.plan.size
    later = "" if live == sparsifier.plan.live else f", {sparsifier.plan.live:,} in the end"
    rank_zero_info(
        f"{name}: {sparsifier.algorithm}, {live:,} of {size:,} weights live ({live / size:.2%}{later}) "
        f"in {len(sparsifier.params)} layers"
    )
    if dense:
        more = f" and {len(dense) - 5} more" if len(dense) > 5 else ""
        rank_zero_info(f"{name}: dense stay {', '.join(dense[:5])}{more}; include=[...] names what is sparse")


def warn(name: str, sparsifier: Sparsifier, total_steps: int | None) -> None:
    """Warn of what will not happen: weights that nothing trains, masks that never move."""
    if lost := sparsifier.unattached():
        rank_zero_warn(f"{name}: no optimizer steps {', '.join(lost)}: masked, but not trained")
    if text := sparsifier.too_short(total_steps):
        rank_zero_warn(f"{name}: {text}")


def warn_of_time(name: str, trainer: Any, sparsifier: Sparsifier, given: Algorithm) -> None:
    """Warn where a clock may end the run before the masks have come to rest.

    Args:
        name: of the callback.
        trainer: a Timer among its callbacks is what ``max_time`` becomes.
        sparsifier: with the algorithm as planned for the run.
        given: the same algorithm before it was planned.
    """
    if not any(kind.__name__ == "Timer" for callback in trainer.callbacks for kind in type(callback).__mro__):
        return
    if not sparsifier.settled():
        what = "before the final density is reached"
    elif sparsifier.algorithm != given:
        what = "before masks have come to rest, as a share of the steps was asked for"
    else:
        return
    rank_zero_warn(f"{name}: max_time may end the run {what}; give stop= in steps that surely fit into that time")


class Unstepped:
    """Knows which sparse parameters no optimizer steps, and tells of each once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def start(self, trainer: Any, engines: Sequence[Sparsifier]) -> None:
        """A fit starts; :func:`warn` has told of these."""
        self._known = set(_unstepped(trainer, engines))

    def look(self, name: str, trainer: Any, engines: Sequence[Sparsifier]) -> None:
        """Warn of parameters that were replaced by others, which no optimizer has."""
        lost = [weight for weight in _unstepped(trainer, engines) if weight not in self._known]
        self._known.update(lost)
        if lost:
            rank_zero_warn(f"{name}: no optimizer steps {', '.join(lost)} any more: masked, but not trained")


def _unstepped(trainer: Any, engines: Sequence[Sparsifier]) -> list[str]:
    held = {id(weight) for opt in trainer.optimizers for group in opt.param_groups for weight in group["params"]}
    return [name for engine in engines for name, p in engine.params.items() if id(p.place.weight) not in held]
