"""What Sparsifier, plan and MaskUpdater are all given: checked in one place, whatever the model."""

from collections.abc import Mapping

from lightning_sparse.core.allocation import ALLOCATIONS
from lightning_sparse.core.patterns import Pattern
from lightning_sparse.core.values import wrong_globs, wrong_share

_LEAST_SEED, _MOST_SEED = -(2**63), 2**64 - 1  # what torch takes


def density_problems(density: object) -> list[str]:
    """What is wrong with a density, or with one for each glob; None is none to be wrong.

    Example:
        >>> density_problems({"head": 0.5, "*": 0}), density_problems({})
        (['density must be in (0, 1], got 0'], ['density has no globs: give a number, or {glob: number}, got {}'])
    """
    if density is None:
        return []
    if not isinstance(density, Mapping):
        return wrong_share("density", density)
    if not density:
        return [f"density has no globs: give a number, or {{glob: number}}, got {density!r}"]
    odd = [glob for glob in density if not isinstance(glob, str)]
    found = [f"density must be given by globs, which are strings, got {odd!r}"] if odd else []
    return found + [text for value in density.values() for text in wrong_share("density", value)]


def allocation_problems(allocation: object) -> list[str]:
    """What is wrong with the name of an allocation; None takes a default."""
    if allocation is None or (isinstance(allocation, str) and allocation in ALLOCATIONS):
        return []
    return [f"unknown allocation {allocation!r}; there are {', '.join(ALLOCATIONS)}"]


def pattern_problems(pattern: object) -> list[str]:
    """What is wrong with a pattern; None lets any weight live."""
    fine = pattern is None or isinstance(pattern, Pattern)
    return [] if fine else [f"pattern must be a Pattern such as NM(2, 4), got {pattern!r}"]


def choice_problems(include: object, exclude: object) -> list[str]:
    """What is wrong with the globs that choose weights."""
    return wrong_globs("include", () if include is None else include) + wrong_globs("exclude", exclude)


def start_problems(init: object, seed: object) -> list[str]:
    """What is wrong with how the first masks are drawn."""
    found = []
    if not isinstance(init, str) or init not in ("random", "magnitude"):
        found.append(f"init must be 'random' or 'magnitude', got {init!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        found.append(f"seed must be int, got {seed!r}")
    elif not _LEAST_SEED <= seed <= _MOST_SEED:
        found.append(f"seed must be from -2**63 to 2**64 - 1, got {seed!r}")
    return found
