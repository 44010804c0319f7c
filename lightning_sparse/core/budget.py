"""What a density comes to in each layer: its share, and a count that its pattern can have."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_sparse.core.allocation import ALLOCATIONS, AllocationName, deal, least_density
from lightning_sparse.core.arguments import allocation_problems, density_problems
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.patterns import Pattern, seen
from lightning_sparse.core.select import Target, matches

Density = float | Mapping[str, float]


class Budget(NamedTuple):
    """Of one layer: the share of live weights it is given, and the same as an integer."""

    density: float
    live: int


def budgets(
    chosen: Sequence[Target], density: Density, allocation: AllocationName, pattern: Pattern
) -> dict[str, Budget]:
    """The budget of every layer, by name.

    In total ``round(density * N)`` weights live, or what is nearest to it in the pattern's whole units (see
    :func:`deal`). A density for each glob, and one that the pattern fixes, count layer by layer.

    Raises:
        ValueError: if the density is impossible; with the least that is reachable.
    """
    raise_problems(_problems(chosen, density, allocation, pattern), "density")
    shapes, sizes = [seen(t) for t in chosen], [t.weight.numel() for t in chosen]
    units, least = [pattern.unit(s) for s in shapes], [pattern.least(s) for s in shapes]
    if isinstance(density, Mapping) or pattern.fixed_density() is not None:
        given = density if isinstance(density, Mapping) else {"*": density}
        shares = {t.name: next(d for g, d in given.items() if matches(t.name, [g])) for t in chosen}
        pairs = zip(chosen, shapes, sizes, strict=True)
        live = [pattern.whole(shares[t.name] * size, shape) for t, shape, size in pairs]
    else:
        shares = ALLOCATIONS[allocation]({t.name: t.weight.shape for t in chosen}, density)
        exact = [shares[t.name] * size for t, size in zip(chosen, sizes, strict=True)]
        upper = [size // unit * unit for size, unit in zip(sizes, units, strict=True)]
        live = deal(exact, round(density * sum(sizes)), least, upper, units)
    rows = zip(chosen, live, units, sizes, strict=True)
    return {t.name: Budget(shares[t.name] if unit == 1 else k / size, k) for t, k, unit, size in rows}


def fitting(chosen: Sequence[Target], pattern: Pattern) -> tuple[list[Target], str]:
    """The parameters that can have the pattern; and of those that cannot, what to say (empty when all can).

    Raises:
        ValueError: if none can.
    """
    odd = {t.name: (tuple(t.weight.shape), why) for t in chosen if (why := pattern.misfit(seen(t)))}
    if not odd:
        return list(chosen), ""
    named = "; ".join(f"{name} {shape}: {why}" for name, (shape, why) in odd.items())
    if len(odd) == len(chosen):
        raise ValueError(f"{pattern} fits no layer: {named}; take another pattern or change these sizes")
    text = f"{pattern} does not fit {len(odd)} of {len(chosen)} layers, which stay dense: {named}; "
    way_out = "change these sizes, take another pattern, or name them in exclude= to say that this is meant"
    return [t for t in chosen if t.name not in odd], text + way_out


def _problems(chosen: Sequence[Target], density: Density, allocation: str, pattern: Pattern) -> list[str]:
    problems = density_problems(density) + allocation_problems(allocation)
    if isinstance(density, Mapping) and not (density and all(isinstance(glob, str) for glob in density)):
        return problems
    values = list(density.values()) if isinstance(density, Mapping) else [density]
    fixed = pattern.fixed_density()
    if fixed is not None and not density_problems(density) and any(value != fixed for value in values):
        problems.append(f"{pattern} has density {fixed}, got {density}; leave density out, or take another pattern")
    names = [t.name for t in chosen]
    if not chosen:
        return problems  # why there is nothing to plan for is said elsewhere
    if isinstance(density, Mapping):
        lost = [glob for glob in density if not any(matches(name, [glob]) for name in names)]
        bare = [name for name in names if not matches(name, list(density))]
        if lost:
            problems.append(f"density globs {lost} match no sparse layer; layers: {', '.join(names)}")
        if bare:
            problems.append(f"no density for {', '.join(bare)}; add a glob, '*' for the rest, or exclude them")
    elif not problems:
        sizes, least = [t.weight.numel() for t in chosen], [pattern.least(seen(t)) for t in chosen]
        if round(density * sum(sizes)) < sum(least):
            needed = "one" if sum(least) == len(sizes) else f"what {pattern} needs ({sum(least)} in all)"
            problems.append(
                f"density {density} keeps {round(density * sum(sizes))} of {sum(sizes)} weights, too few for {needed} "
                f"in each of the {len(sizes)} layers; the least density that is reachable is "
                f"{least_density(sizes, sum(least))}"
            )
    return problems
