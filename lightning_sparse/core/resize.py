"""Sparse parameters whose weights have lost channels: masks, budgets and learned state follow."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import outputs_first
from lightning_sparse.core.surgery import Cuts, taken


def misfits(params: Mapping[str, SparseParam], cuts: Cuts) -> list[str]:
    """Why the patterns of some parameters exclude these cuts, a sentence each; nothing is changed."""
    problems = []
    for name, p in params.items():
        if name in cuts:
            shape = list(p.mask.shape)
            for dim, index in cuts[name].items():
                shape[dim] = len(index)
            seen = outputs_first(torch.empty(shape, device="meta"), p.place.module).shape
            if why := p.pattern.misfit(seen):
                problems.append(f"{name} would lose its pattern {p.pattern}: {why}; give round_to= a multiple of it")
    return problems


def fit_shapes(params: Mapping[str, SparseParam]) -> None:
    """Weights that were given other shapes by a checkpoint: all live, until its masks are there too."""
    for p in params.values():
        if p.mask.shape != p.place.shape:
            p.latent, p.dense_grad = None, None
            p.refit(torch.ones(p.place.weight.shape, dtype=torch.bool))


def resize_params(
    params: Mapping[str, SparseParam], cuts: Cuts, algorithm: Algorithm, steps: Mapping[str, int]
) -> None:
    """All of them: see :func:`resize_param`.

    Args:
        params: by name.
        cuts: indices that stayed, by name and dimension.
        algorithm: of the run.
        steps: that their optimizers have taken.
    """
    for name, p in params.items():
        p.resized = True
        if name in cuts:
            resize_param(p, cuts[name], algorithm, steps[name])


@torch.no_grad()
def resize_param(p: SparseParam, dims: Mapping[int, Tensor], algorithm: Algorithm, step: int) -> None:
    """Follow a weight that was cut: its mask loses the same entries, and its budget stays the same share.

    Where the cut took more or fewer live weights than their share, as many are dropped (the smallest) or grown (at
    random, at zero), so that counts are exact.

    Args:
        p: whose weight was cut.
        dims: the indices that stayed, by dimension.
        algorithm: mends what it keeps in ``p.state``.
        step: optimizer steps taken, for the randomness.
    """
    old, live, target, above = p.mask.shape, p.live / p.size, p.target / p.size, p.live >= p.target
    mask = taken(p.mask, dims, old)
    p.state = {key: taken(value, dims, old).clone() for key, value in p.state.items()}
    p.latent = None if p.latent is None else taken(p.latent, dims, old).clone()
    p.dense_grad, p.step = None, step
    p.scratch.clear()
    share = p.refit(mask)
    p.target = p.whole(target * p.size)
    if not p.free:
        wanted = p.whole(live * p.size)
        p.set_mask(_repaired(p, max(wanted, p.target) if above else wanted))
    algorithm.resized(p, share)


def _repaired(p: SparseParam, live: int) -> Tensor:
    """Its mask with exactly ``live`` weights, in its pattern: the largest first, then dead ones by chance."""
    if p.live == live and p.holds(p.mask):
        return p.mask
    size = (p.weight if p.latent is None else p.latent).abs().double()
    scores = torch.where(p.mask, 1 + size / size.max().clamp_min(1e-300), p.uniform("resize").double())
    return p.keep(scores, live, torch.ones_like(p.mask))
