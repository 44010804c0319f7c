"""Arguments that cannot be right, whatever the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.arguments import (
    allocation_problems,
    choice_problems,
    density_problems,
    pattern_problems,
    start_problems,
)
from lightning_sparse.core.values import wrong_flags

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater


def problems(updater: "MaskUpdater") -> list[str]:
    """What is wrong with the arguments of a MaskUpdater, before there is a model: a sentence each."""
    found = []
    known = isinstance(updater.algorithm, str) and updater.algorithm in ALGORITHMS
    if not known and not isinstance(updater.algorithm, Algorithm):
        found.append(f"unknown algorithm {updater.algorithm!r}; there are {', '.join(ALGORITHMS)}, or give an object")
    found += density_problems(updater.density_wanted) + allocation_problems(updater.allocation)
    if isinstance(updater.density_wanted, Mapping) and updater.allocation is not None:
        found.append("a density for each glob leaves nothing to allocate; give allocation or globs, not both")
    found += pattern_problems(updater.pattern) + choice_problems(updater.include, updater.exclude)
    found += _compute_problems(updater, known)
    found += start_problems(updater.init, updater.seed) + wrong_flags(updater, "reset_monitors", "restore_rng")
    return found + ([] if isinstance(updater.name, str) else [f"name must be str, got {updater.name!r}"])


def _compute_problems(updater: "MaskUpdater", known: bool) -> list[str]:
    if not isinstance(updater.compute, str) or updater.compute not in ("dense", "sparse", "auto"):
        return [f"compute must be 'dense', 'sparse' or 'auto', got {updater.compute!r}"]
    given = updater.algorithm
    algorithm = ALGORITHMS[given]() if known and isinstance(given, str) else given
    if updater.compute == "sparse" and isinstance(algorithm, Algorithm) and (reason := algorithm.why_dense()):
        return [f"compute='sparse': {type(algorithm).__name__} {reason}; give compute='dense', or 'auto'"]
    return []
