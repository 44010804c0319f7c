"""What a MaskUpdater tells its user when a fit starts."""

from collections.abc import Sequence

from lightning_sparse.callbacks.base import rank_zero_info, rank_zero_warn
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
