"""A dry run: what a density means for every layer of a model, before anything is trained."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.arguments import choice_problems, pattern_problems
from lightning_sparse.core.budget import Density as Density
from lightning_sparse.core.budget import budgets, fitting
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import Costs, count_flops
from lightning_sparse.core.patterns import Pattern, Unstructured
from lightning_sparse.core.select import Target, select


@dataclass(frozen=True)
class LayerPlan:
    """One row of a :class:`Plan`.

    Attributes:
        name: of the parameter.
        shape: of the parameter.
        density: the share of live weights the layer is given.
        live: the same as an integer.
        dense_flops: forward FLOPs a sample of the dense layer; None when unknown.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    live: int
    dense_flops: float | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def flops(self) -> float | None:
        """Forward FLOPs a sample at this density; None when unknown."""
        return None if self.dense_flops is None else self.dense_flops * self.live / self.size


@dataclass(frozen=True)
class Plan:
    """Layers with their densities, and the totals over them.

    Attributes:
        layers: one row a sparse layer.
        other_flops: forward FLOPs a sample of the layers that stay dense; None when unknown.
        algorithm: decides what training costs; None counts a static mask.

    Example:
        >>> made = plan(nn.Linear(10, 10), 0.2)
        >>> made.live, made.size, made.layers[0].name
        (20, 100, 'weight')
    """

    layers: tuple[LayerPlan, ...]
    other_flops: float | None = None
    algorithm: Algorithm | None = None

    @property
    def size(self) -> int:
        """Weights in all the sparse layers."""
        return sum(row.size for row in self.layers)

    @property
    def live(self) -> int:
        """Live weights in all the sparse layers."""
        return sum(row.live for row in self.layers)

    @property
    def density(self) -> float:
        """Live share over the sparse layers."""
        return self.live / self.size

    @property
    def dense_flops(self) -> float | None:
        """Forward FLOPs a sample of the dense model; None when unknown."""
        known = [row.dense_flops for row in self.layers if row.dense_flops is not None]
        return None if self.other_flops is None else sum(known) + self.other_flops

    @property
    def flops(self) -> float | None:
        """Forward FLOPs a sample of the sparse model, its dense layers included; None when unknown."""
        known = [row.flops for row in self.layers if row.flops is not None]
        return None if self.other_flops is None else sum(known) + self.other_flops

    @property
    def training_flops(self) -> float | None:
        """FLOPs to train on one sample; None when unknown."""
        if self.flops is None or self.dense_flops is None:
            return None
        return (self.algorithm or Algorithm()).training_flops(self.flops, self.dense_flops)

    def counted(self, flops: Costs) -> "Plan":
        """The same plan with dense forward FLOPs a sample, by parameter name, as :func:`count_flops` gives them."""
        rows = tuple(replace(row, dense_flops=flops.get(row.name, 0.0)) for row in self.layers)
        other = sum(flops.values()) - sum(row.dense_flops or 0.0 for row in rows)
        return replace(self, layers=rows, other_flops=other)

    def __str__(self) -> str:
        """The table."""
        rows = [(r.name, "x".join(map(str, r.shape)), r.density, r.live, r.size, r.flops) for r in self.layers]
        rows.append(("total", "", self.density, self.live, self.size, self.flops))
        cells = [("layer", "shape", "density", "live", "weights", "FLOPs")]
        cells += [(n, s, f"{d:.4f}", f"{k:,}", f"{size:,}", count(f)) for n, s, d, k, size, f in rows]
        text = table(cells)
        if self.flops and self.dense_flops and self.training_flops:
            text += f"\nforward {count(self.flops)}FLOPs a sample, {self.flops / self.dense_flops:.1%} of dense"
            text += f"; training {count(self.training_flops)}FLOPs, {self.training_flops / self.dense_flops / 3:.1%}"
        return text


def count(number: float | None) -> str:
    """A large number for people.

    Example:
        >>> count(12_345_678.0), count(None)
        ('12.3 M', '-')
    """
    if number is None:
        return "-"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g} "


def table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first row is the head, the last the total.

    Example:
        >>> print(table([("layer", "live"), ("fc", "12"), ("total", "12")]))
        layer   live
        fc        12
        total     12
    """
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    rows = [[c.rjust(w) for c, w in zip(row, widths, strict=True)] for row in cells]
    names = [row[0].ljust(widths[0]) for row in cells]
    return "\n".join("  ".join([name, *row[1:]]).rstrip() for name, row in zip(names, rows, strict=True))


def plan(
    model: nn.Module,
    density: Density | None,
    allocation: AllocationName = "erk",
    *,
    pattern: Pattern | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    example_inputs: Any = None,
    algorithm: Algorithm | None = None,
) -> Plan:
    """What ``density`` means for every layer; the model is not changed.

    Args:
        model: any module.
        density: live share of all chosen weights together, in (0, 1]; or one for each glob over names; None takes the
            pattern's own, else 0.1.
        allocation: "uniform", "er", "erk", or "global" (layers compete; the plan then shows equal shares).
        pattern: the shape that live weights may take; counts are then whole units of it. Layers that cannot have it
            stay dense, with a warning.
        include: globs over parameter or module names; None takes :func:`select`'s default.
        exclude: globs of what stays dense.
        example_inputs: one batch, to count FLOPs (2 for each multiply-add, a sample); a LightningModule's
            ``example_input_array`` serves when None.
        algorithm: an algorithm whose training FLOPs are wanted; None counts a static mask.

    Returns:
        The plan; ``print`` it for the table.

    Raises:
        ValueError: if the density is impossible (with the least that is reachable), or nothing matches.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> print(plan(net, 0.05, example_inputs=torch.zeros(1, 784)))
        layer       shape  density    live  weights   FLOPs
        0.weight  300x784   0.0394   9,261  235,200  18.5 k
        2.weight   10x300   0.8829   2,649    3,000   5.3 k
        total               0.0500  11,910  238,200  23.8 k
        forward 23.8 kFLOPs a sample, 5.0% of dense; training 71.5 kFLOPs, 5.0%
    """
    raise_problems(pattern_problems(pattern) + choice_problems(include, exclude), "plan")
    pattern = pattern or Unstructured()
    chosen, odd = fitting(select(model, include, exclude), pattern)
    wanted = density if density is not None else pattern.fixed_density() or 0.1
    inputs = getattr(model, "example_input_array", None) if example_inputs is None else example_inputs
    made = make_plan(chosen, wanted, allocation, pattern=pattern, algorithm=algorithm)
    if odd:
        warnings.warn(odd, stacklevel=2)
    return made if inputs is None else made.counted(count_flops(model, inputs))


def make_plan(
    chosen: Sequence[Target],
    density: Density,
    allocation: AllocationName,
    *,
    pattern: Pattern | None = None,
    algorithm: Algorithm | None = None,
) -> Plan:
    """The plan for parameters that are chosen already (what the engine builds on)."""
    given = budgets(chosen, density, allocation, pattern or Unstructured())
    return Plan(tuple(LayerPlan(t.name, tuple(t.weight.shape), *given[t.name]) for t in chosen), algorithm=algorithm)
