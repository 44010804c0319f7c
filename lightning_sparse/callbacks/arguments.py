"""Arguments that cannot be right, whatever the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.allocation import ALLOCATIONS
from lightning_sparse.core.patterns import Pattern

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater


def problems(updater: "MaskUpdater") -> list[str]:
    """What is wrong with the arguments of a MaskUpdater, before there is a model: a sentence each."""
    found = []
    known = isinstance(updater.algorithm, str) and updater.algorithm in ALGORITHMS
    if not known and not isinstance(updater.algorithm, Algorithm):
        found.append(f"unknown algorithm {updater.algorithm!r}; there are {', '.join(ALGORITHMS)}, or give an object")
    wanted = updater.density_wanted
    values = wanted.values() if isinstance(wanted, Mapping) else [0.1 if wanted is None else wanted]
    found += [f"density must be in (0, 1], got {v!r}" for v in values if not _is_share(v)]
    if updater.allocation is not None and updater.allocation not in list(ALLOCATIONS):
        found.append(f"unknown allocation {updater.allocation!r}; there are {', '.join(ALLOCATIONS)}")
    if isinstance(wanted, Mapping) and updater.allocation is not None:
        found.append("a density for each glob leaves nothing to allocate; give allocation or globs, not both")
    if updater.init not in ("random", "magnitude"):
        found.append(f"init must be 'random' or 'magnitude', got {updater.init!r}")
    if updater.compute != "dense":
        found.append(f"compute must be 'dense', got {updater.compute!r}; computing only non-zeros is not there yet")
    if updater.pattern is not None and not isinstance(updater.pattern, Pattern):
        found.append(f"pattern must be a Pattern, got {updater.pattern!r}")
    found += _wrong_globs("include", updater.include or ()) + _wrong_globs("exclude", updater.exclude)
    kinds: list[tuple[str, object, type]] = [("seed", updater.seed, int), ("name", updater.name, str)]
    return found + [f"{what} must be {kind.__name__}, got {v!r}" for what, v, kind in kinds if not isinstance(v, kind)]


def _wrong_globs(what: str, globs: object) -> list[str]:
    if isinstance(globs, str):
        return [f"{what} must be a list of globs, got the string {globs!r}; write [{globs!r}]"]
    if not isinstance(globs, list | tuple) or not all(isinstance(glob, str) for glob in globs):
        return [f"{what} must be a list of globs, got {globs!r}"]
    return []


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
