"""Weights that are a function of latent ones: what is asked of such algorithms, and how weights are shown."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.param import SparseParam


class Latent(Algorithm):
    """An algorithm whose weights are computed from latent ones, which the user's optimizer steps.

    The engine holds the latent weights (``p.latent``). Between steps the parameter shows the effective weights: every
    forward pass, ``state_dict`` and export see these. Around a step the latent ones are swapped in. What else is
    learned (thresholds, gates) lives in ``p.state`` and is stepped by :meth:`learn`.

    A subclass says how: ``effective`` (latent to shown) and ``pull_back`` (gradient of the shown to the latent's), and
    ``latent_of`` (shown to latent) where these are not the same.
    """

    outcome: ClassVar[bool] = False  # density may be left open: what comes out is what was learned
    noisy: ClassVar[bool] = False  # training forward passes see a sample, others its centre

    def why_dense(self) -> str:
        """See :meth:`Algorithm.why_dense`."""
        return "steps latent weights, which are dense"

    def holds(self, step: int) -> bool:
        """Whether weights are still latent after optimizer step ``step``; else they are plain, on fixed masks."""
        return True

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """Fill ``p.state`` with what is learned beside the weights, before the first masks are asked for."""

    def unfinished(self, total_steps: int | None) -> str:
        """What of a density that was asked for a run of that length does not reach; empty when all is well."""
        return ""

    @abstractmethod
    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """What a forward pass sees, of the shape of the weight; the engine zeroes it outside the mask, in a copy.

        Args:
            p: with ``p.latent`` and ``p.state``.
            noisy: whether a training pass asks, of an algorithm that is ``noisy``.
        """

    def latent_of(self, p: SparseParam, changed: Tensor) -> Tensor:
        """All latent weights after other code has written into the shown ones; these themselves unless overridden.

        Args:
            p: with what was written in ``p.weight``.
            changed: bool, where live weights are not what was shown.
        """
        assert p.latent is not None
        return torch.where(changed, p.weight, p.latent)

    @abstractmethod
    def pull_back(self, p: SparseParam, gradient: Tensor) -> Tensor:
        """The gradient of the latent weights, given that of the shown ones (dense); linear in it.

        Gradients of what else is learned go into ``p.scratch``; there they wait for :meth:`learn`.
        """

    def penalty_gradient(self, p: SparseParam) -> Tensor | None:
        """The gradient of a penalty on the latent weights, which the loss does not have; None for none."""
        return None

    def absorb(self, p: SparseParam, stepped: Tensor) -> None:
        """Take the latent weights as the optimizer left them."""
        assert p.latent is not None
        p.latent.copy_(stepped)

    def learn(self, p: SparseParam, group: Mapping[str, Any], scale: Tensor | None) -> None:
        """Step what is learned beside the weights.

        Args:
            p: with gradients in ``p.scratch``.
            group: of the optimizer that steps the weight: its learning rate, momentum, weight decay.
            scale: what a gradient scaler has multiplied gradients with, where they still carry it.
        """


def start_latents(algorithm: Algorithm, params: Sequence[SparseParam]) -> None:
    """Copy the weights: they are the first latent ones. At density 1 there is nothing to compute: none are made."""
    if isinstance(algorithm, Latent) and any(p.free or p.target < p.size for p in params):
        for p in params:
            p.latent = p.weight.clone()
        algorithm.prepare(params)


def unreached(algorithm: Algorithm, params: Mapping[str, SparseParam], total_steps: int | None) -> str:
    """What of a density that was asked for a run of that length does not reach; empty when all is well."""
    steered = any(p.latent is not None and not p.free for p in params.values())
    return algorithm.unfinished(total_steps) if steered and isinstance(algorithm, Latent) else ""


def latents(params: Sequence[SparseParam]) -> list[SparseParam]:
    """Those whose weights are computed from latent ones."""
    return [p for p in params if p.latent is not None]


@torch.no_grad()
def show(algorithm: Algorithm, params: Sequence[SparseParam], noisy: bool = False) -> None:
    """Put the effective weights into the parameters."""
    if isinstance(algorithm, Latent):
        for p in latents(params):
            p.place.weight.copy_(algorithm.effective(p, noisy)).masked_fill_(~p.mask, 0.0)
            p.noisy, p.written = noisy, _version(p)


@torch.no_grad()
def catch_up(algorithm: Algorithm, params: Sequence[SparseParam], compare: bool = False) -> None:
    """Live weights that other code has written since they were shown are what the latent ones come from now.

    A write raises a tensor's version, which costs nothing to look at; writes through ``.data`` do not.

    Args:
        algorithm: planned for the run.
        params: of which those with latent weights are looked at.
        compare: whether to look at the values, whatever the versions say.
    """
    if isinstance(algorithm, Latent):
        for p in latents(params):
            assert p.latent is not None
            if compare or p.written != _version(p):
                changed = (p.weight != algorithm.effective(p, p.noisy)) & p.mask
                p.latent.copy_(algorithm.latent_of(p, changed))
                p.written = _version(p)


def _version(p: SparseParam) -> tuple[int, int]:
    return p.place.weight._version, p.place.weight.data_ptr()


@torch.no_grad()
def centre(algorithm: Latent, p: SparseParam) -> Tensor:
    """The effective weight without chance."""
    return algorithm.effective(p).masked_fill(~p.mask, 0.0)


def learn(
    algorithm: Algorithm, params: Sequence[SparseParam], groups: Sequence[Mapping[str, Any]], scale: Tensor | None
) -> None:
    """Step what is learned beside the weights, each with the settings of the group that holds its weight."""
    assert isinstance(algorithm, Latent)
    owner = {id(weight): group for group in groups for weight in group["params"]}
    for p in latents(params):
        if p.place.weight.grad is not None:  # else the step does not touch the weight either
            algorithm.learn(p, owner[id(p.place.weight)], scale)
        p.scratch.clear()


def settle_latents(params: Sequence[SparseParam]) -> None:
    """Latent weights have done their work: what is shown is the weight from now on."""
    for p in params:
        p.latent = None
        p.scratch.clear()
        p.state.clear()
