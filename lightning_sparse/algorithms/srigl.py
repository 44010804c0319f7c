"""RigL with a constant number of inputs for every neuron, and neurons that are cut off."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from lightning_sparse.algorithms.dynamic import RigL
from lightning_sparse.core.algorithm import Masks, first_score
from lightning_sparse.core.masks import keep_best, keep_top
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Unstructured, outputs_first, seen
from lightning_sparse.core.schedules import Schedule


@dataclass(frozen=True)
class SRigL(RigL):
    """RigL whose neurons all have as many live inputs; neurons with too few salient weights lose all of theirs.

    A weight is salient if RigL would keep or grow it. A neuron (an output of the layer) with fewer salient weights than
    ``gamma`` times the fan-in is ablated, and its places go to the others; it may come back at a later update. Then
    the smallest weights of the layer are dropped, and every active neuron keeps its largest and grows where its
    gradient is largest, until its fan-in is reached. Such masks are stored as one table of values and one of indices.
    Source: Lasby et al. 2023, https://arxiv.org/abs/2305.02299, section 3.1.

    The layer's count is exact: with ``k, rest = divmod(count, active neurons)`` the fan-in is ``k``, and ``k + 1`` for
    the ``rest`` neurons with most salient weights (the authors leave the rest out). The fan-in that ``gamma`` refers to
    is that without ablation, ``count // neurons``, and at least one weight must be salient. The last layer that an
    optimizer trains, in the model's order, loses no neuron, and no layer loses so many that the others could not hold
    its weights. An ablated neuron still gives its bias. Differences from the authors' code, besides those of
    :class:`RigL`: a neuron that would keep too many keeps its largest (theirs keeps any); one with too few weights to
    grow keeps the largest of those it dropped.

    Args:
        every: optimizer steps between updates, or "epoch"; None takes the variant's own.
        stop: last step at which masks may move (int), or share of the run (float); None takes the variant's own.
        fraction: share of the live weights to drop; None takes the variant's own.
        regrow_dropped: whether a weight just dropped may be grown at once, keeping its value.
        replace_step: whether an update takes the place of the optimizer step.
        drop: "magnitude" or "contribution", as for :class:`DropGrow`.
        variant: "paper" or "itop", as for RigL.
        gamma: least share of the fan-in that must be salient, in [0, 1]; 0 ablates nothing. The authors take 0.3, and
            0.95 for vision transformers.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 6), SRigL(stop=900), 0.25)
        >>> engine.masks["weight"].sum(1).sort().values.tolist()
        [2, 2, 2, 3, 3, 3]
    """

    gamma: float = 0.3

    def problems(self) -> list[str]:
        """What is wrong with the hyper-parameters, a sentence each."""
        wrong = [] if 0 <= self.gamma <= 1 else [f"gamma must be in [0, 1], got {self.gamma}"]
        return super().problems() + wrong

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Masks of constant fan-in, all neurons active, at the planned counts.

        Raises:
            ValueError: if a pattern or a common budget is asked for, which constant fan-in excludes.
        """
        if taken := [p for p in params if p.pattern != Unstructured()]:
            raise ValueError(f"SRigL makes its own pattern, constant fan-in; leave out pattern={taken[0].pattern}")
        if any(p.scope == "global" for p in params):
            raise ValueError("SRigL needs a count for each layer; take another allocation than 'global'")
        masks = {}
        for p in params:
            score = by_neuron(p, first_score(p))
            best = score.amax(1)
            fan_in = _fan_in(p.target, torch.ones_like(best, dtype=torch.bool), best)
            masks[p.name] = as_weight(p, keep_best(score, fan_in, torch.ones_like(score, dtype=torch.bool)))
        return masks

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Ablate, drop and grow in every layer; no ablation in the last."""
        assert isinstance(self.fraction, Schedule), "None was filled in"
        share = self.fraction(step, int(self.stop or 0))
        return {p.name: self.restructure(p, share, ablate=p is not params[-1]) for p in params}

    def restructure(self, p: SparseParam, share: float, *, ablate: bool) -> Tensor:
        """The mask after a share of the live weights was exchanged, with constant fan-in."""
        n = floor(share * p.live + 1e-9)
        n = n if self.regrow_dropped else min(n, p.size - p.live)
        if n == 0:
            return p.mask
        drop, grow = self.drop_score(p), self.grow_score(p)
        salient = by_neuron(p, self.regrow(p, p.keep(drop, p.live - n, p.mask), n)).sum(1)
        active = self._active(salient, p) if ablate else torch.ones_like(salient, dtype=torch.bool)
        alive = p.mask & as_weight(p, active[:, None].expand(-1, p.size // len(active)))
        kept = p.keep(drop, min(p.live - n, int(alive.count_nonzero())), alive)
        candidates = ~kept if self.regrow_dropped else ~p.mask
        fan_in, chosen = _fan_in(p.live, active, salient), by_neuron(p, torch.zeros_like(p.mask))
        for score, among in ((drop, kept), (grow, candidates), (drop, ~kept)):  # at last, what was just dropped
            allowed = by_neuron(p, among) & ~chosen
            need = torch.minimum(fan_in - chosen.sum(1), allowed.sum(1))
            chosen = chosen | keep_best(by_neuron(p, score), need, allowed)
        return as_weight(p, chosen)

    def _active(self, salient: Tensor, p: SparseParam) -> Tensor:
        """Which neurons have enough salient weights; always as many as the layer's weights need."""
        if self.gamma == 0:
            return torch.ones_like(salient, dtype=torch.bool)
        neurons = len(salient)
        needed = -(-p.live // (p.size // neurons))
        enough = max(1, floor(self.gamma * (p.live // neurons) + 1e-9))
        return salient >= salient.sort(descending=True).values[needed - 1].clamp(max=enough)


def by_neuron(p: SparseParam, tensor: Tensor) -> Tensor:
    """A row for each output of the layer, of all that leads into it: (neurons, inputs times kernel).

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> p = Sparsifier(torch.nn.ConvTranspose1d(4, 6, 5), SRigL(stop=900), 0.5).params["weight"]
        >>> list(p.weight.shape), list(by_neuron(p, p.weight).shape)
        ([4, 6, 5], [6, 20])
        >>> bool((as_weight(p, by_neuron(p, p.weight)) == p.weight).all())
        True
    """
    return outputs_first(tensor, p.place.module).flatten(1)


def as_weight(p: SparseParam, rows: Tensor) -> Tensor:
    """The inverse of :func:`by_neuron`."""
    return outputs_first(rows.reshape(seen(p.place)), p.place.module)


def _fan_in(count: int, active: Tensor, worth: Tensor) -> Tensor:
    """Inputs of each neuron: ``count`` shared evenly over the active ones; the rest to those that are worth most."""
    least, rest = divmod(count, int(active.count_nonzero()))
    return active * least + keep_top(worth, rest, active)
