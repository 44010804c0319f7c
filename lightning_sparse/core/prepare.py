"""From what a user asks for to sparse parameters, with every check made before a weight is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import collecting, raise_problems
from lightning_sparse.core.follower import replaceable
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.masks import Pattern
from lightning_sparse.core.param import Init, SparseParam
from lightning_sparse.core.plan import Density, Plan, make_plan
from lightning_sparse.core.select import Target, select


class Prepared(NamedTuple):
    """What the engine starts from."""

    algorithm: Algorithm
    plan: Plan
    params: dict[str, SparseParam]


def prepare(
    model: nn.Module,
    algorithm: Algorithm,
    density: Density | None,
    *,
    optimizers: Sequence[Optimizer],
    allocation: AllocationName | None,
    pattern: Pattern,
    init: Init,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    seed: int,
    total_steps: int | None,
    epoch_steps: int | None,
    restored: bool,
) -> Prepared:
    """Check everything and make the parameters, with all weights still live; see :class:`Sparsifier` for arguments.

    Raises:
        ValueError: on all problems at once.
    """
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"Sparsifier: algorithm must be an object such as RigL(), got {algorithm!r}")
    shared = allocation or algorithm.allocation
    wanted = density if density is not None else pattern.fixed_density() or 0.1
    problems = _problems(algorithm, optimizers, init, shared, restored)
    chosen: list[Target] = []
    with collecting(problems):
        chosen = select(model, include, exclude)
    with collecting(problems):
        algorithm = algorithm.planned(total_steps, epoch_steps)
    with collecting(problems):
        plan = make_plan(chosen, wanted, shared, pattern=pattern, algorithm=algorithm)
    raise_problems(problems, "Sparsifier")
    params = {
        place.name: SparseParam(
            place,
            density=row.density,
            target=row.live,
            pattern=pattern,
            seed=seed,
            init=init,
            scope="global" if shared == "global" else "layer",
        )
        for place, row in zip(chosen, plan.layers, strict=True)
    }
    return Prepared(algorithm, plan, params)


def settle(plan: Plan, params: Mapping[str, SparseParam]) -> Plan:
    """The plan after the first masks: under "global" only they say what each layer got."""
    if any(p.scope == "layer" for p in params.values()) or sum(p.live for p in params.values()) != plan.live:
        return plan
    for p in params.values():
        p.target, p.density = p.live, p.live / p.size
    rows = tuple(replace(row, live=params[row.name].live, density=params[row.name].density) for row in plan.layers)
    return replace(plan, layers=rows)


def _problems(
    algorithm: Algorithm, optimizers: Sequence[Optimizer], init: str, allocation: str, restored: bool
) -> list[str]:
    found: list[str] = []
    for optimizer in optimizers:
        with collecting(found):
            replaceable(algorithm, unwrap(optimizer))
    if init not in ("random", "magnitude"):
        found.append(f"init must be 'random' or 'magnitude', got {init!r}")
    ranks = init == "magnitude" or restored or type(algorithm).init is not Algorithm.init
    if allocation == "global" and not ranks:
        found.append("allocation='global' ranks weights over all layers: it needs init='magnitude'")
    return found
