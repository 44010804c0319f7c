"""From what a user asks for to sparse parameters, with every check made before a weight is touched."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.arguments import choice_problems, pattern_problems, start_problems
from lightning_sparse.core.budget import fitting
from lightning_sparse.core.errors import collecting, raise_problems
from lightning_sparse.core.follower import replaceable
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.latent import Latent
from lightning_sparse.core.param import Init, SparseParam
from lightning_sparse.core.patterns import Pattern, Unstructured
from lightning_sparse.core.plan import Density, Plan, make_plan
from lightning_sparse.core.probe import unprepared
from lightning_sparse.core.select import Target, select
from lightning_sparse.core.sharded import is_sharded
from lightning_sparse.core.values import is_whole


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
    pattern: Pattern | None,
    init: Init,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    seed: int,
    total_steps: int | None,
    epoch_steps: int | None,
    restored: bool,
    data: tuple[Any, Any, Any] = (None, None, None),
) -> Prepared:
    """Check everything and make the parameters, with all weights still live; see :class:`Sparsifier` for arguments.

    Raises:
        ValueError: on all problems at once.
    """
    lengths = {"total_steps": total_steps, "epoch_steps": epoch_steps}
    unusable = _unusable(model, algorithm, lengths) + pattern_problems(pattern) + choice_problems(include, exclude)
    raise_problems(unusable, "Sparsifier")  # with these nothing else can be looked at
    own = "uniform" if isinstance(density, Mapping) else algorithm.allocation
    shared = own if allocation is None else allocation
    if pattern is None:
        pattern = (algorithm.own_pattern if density is None else None) or Unstructured()
    free = density is None and isinstance(algorithm, Latent) and algorithm.outcome and not pattern.fixed_density()
    wanted = density if density is not None else 1.0 if free else pattern.fixed_density() or 0.1
    problems = _problems(algorithm, optimizers, init, shared, restored) + _unshaped(algorithm, pattern, free)
    problems += start_problems(init, seed)
    if isinstance(density, Mapping) and allocation is not None:
        problems.append("a density for each glob leaves nothing to allocate; give allocation or globs, not both")
    if not restored and (lacks := unprepared(algorithm.asks, *data)):
        problems.append(f"{type(algorithm).__name__}: {lacks}")
    chosen: list[Target] = []
    odd = ""
    with collecting(problems):
        chosen, odd = fitting(select(model, include, exclude), pattern)
        problems += _unshared(algorithm, chosen, restored)
    with collecting(problems):
        algorithm = algorithm.planned(total_steps, epoch_steps)
    with collecting(problems):
        plan = make_plan(chosen, wanted, shared, pattern=pattern, algorithm=algorithm)
    raise_problems(problems, "Sparsifier")
    if odd:
        warnings.warn(odd, stacklevel=3)
    params = {
        place.name: SparseParam(
            place,
            density=row.density,
            target=row.live,
            pattern=pattern,
            seed=seed,
            init=init,
            scope="global" if shared == "global" else "layer",
            free=free,
        )
        for place, row in zip(chosen, plan.layers, strict=True)
    }
    return Prepared(algorithm, plan, params)


def settle_targets(algorithm: Algorithm, params: Sequence[SparseParam]) -> None:
    """Where layers compete for one budget, the first masks say what each got, if their density is the final one.

    Whole units of a pattern may miss the budget: then it stays what was planned, and what a resumed run plans again.
    """
    together = algorithm.settled(0) and all(p.scope == "global" for p in params)
    if together and sum(p.live for p in params) == sum(p.target for p in params):
        for p in params:
            p.target = p.live


def settle(plan: Plan, params: Mapping[str, SparseParam]) -> Plan:
    """The plan with what each layer has got.

    Of layers that compete for one budget, units of different sizes may not add up to the planned total again.
    """
    off = abs(sum(p.live for p in params.values()) - sum(p.target for p in params.values()))
    near = 0 < off < max(p.unit for p in params.values()) and all(p.scope == "global" for p in params.values())
    rows = []
    for row in plan.layers:
        p = params[row.name]
        got = p.live if near else p.target
        if got != row.live or p.size != row.size:  # of other size where channels were cut
            p.density = got / p.size
            row = replace(row, live=got, density=p.density, shape=tuple(p.mask.shape), dense_flops=None)
        rows.append(row)
    return replace(plan, layers=tuple(rows))


def _problems(
    algorithm: Algorithm, optimizers: Sequence[Optimizer], init: str, allocation: str, restored: bool
) -> list[str]:
    found: list[str] = []
    for optimizer in optimizers:
        with collecting(found):
            replaceable(algorithm, unwrap(optimizer))
    own = type(algorithm).init is not Algorithm.init or algorithm.asks != "nothing"
    ranks = init == "magnitude" or restored or own
    if allocation == "global" and not ranks:
        found.append("allocation='global' ranks weights over all layers: it needs init='magnitude'")
    return found


def _unusable(model: object, algorithm: object, lengths: Mapping[str, object]) -> list[str]:
    found = [] if isinstance(model, nn.Module) else [f"model must be a torch.nn.Module, got {model!r}"]
    if not isinstance(algorithm, Algorithm):
        found.append(f"algorithm must be an object such as RigL(), got {algorithm!r}")
    wrong = {name: n for name, n in lengths.items() if n is not None and not (is_whole(n) and n >= 0)}  # type: ignore[operator]
    return found + [f"{name} must be a number of optimizer steps, or None, got {n!r}" for name, n in wrong.items()]


def _unshared(algorithm: Algorithm, chosen: Sequence[Target], restored: bool) -> list[str]:
    """What an algorithm does that weights which processes share (FSDP2, tensor parallel) exclude."""
    name, elsewhere = type(algorithm).__name__, "DDP or a single process"
    if not any(is_sharded(target.weight) for target in chosen):
        return []
    if isinstance(algorithm, Latent):
        return [f"{name} keeps latent weights, and here processes share the weights; train it under {elsewhere}"]
    if algorithm.rewind_step is not None:
        return [f"{name} cannot rewind weights that processes share; leave rewind=None, or train under {elsewhere}"]
    if algorithm.asks != "nothing" and not restored:
        text = f"{name} looks at a copy of the model, and weights that processes share cannot be copied; make its masks"
        return [f"{text} under {elsewhere} and go on from that checkpoint here"]
    return []


def _unshaped(algorithm: Algorithm, pattern: Pattern, free: bool) -> list[str]:
    """What an algorithm does that its pattern excludes."""
    name = type(algorithm).__name__
    if algorithm.moves_budget and pattern.fixed_density() is not None:
        text = f"{name} moves weights between layers, {pattern} fixes the count of each; take RigL() or another pattern"
        return [text]
    if free and not isinstance(pattern, Unstructured):
        return [f"{name} without a density gives up weights one by one, which {pattern} excludes; give density="]
    return []
