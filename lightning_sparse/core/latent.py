"""Weights that are a function of latent ones: what is asked of such algorithms, and the swap around a step."""

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

    A subclass says how: ``effective`` (latent to shown) and ``pull_back`` (gradient of the shown to the latent's).
    """

    outcome: ClassVar[bool] = False  # density may be left open: what comes out is what was learned
    noisy: ClassVar[bool] = False  # training forward passes see a sample, others its centre

    def holds(self, step: int) -> bool:
        """Whether weights are still latent after optimizer step ``step``; else they are plain, on fixed masks."""
        return True

    def prepare(self, params: Sequence[SparseParam]) -> None:
        """Fill ``p.state`` with what is learned beside the weights, before the first masks are asked for."""

    @abstractmethod
    def effective(self, p: SparseParam, noisy: bool = False) -> Tensor:
        """What a forward pass sees, of the shape of the weight; the engine zeroes it outside the mask.

        Args:
            p: with ``p.latent`` and ``p.state``.
            noisy: whether a training pass asks, of an algorithm that is ``noisy``.
        """

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


def latents(params: Sequence[SparseParam]) -> list[tuple[SparseParam, Tensor]]:
    """The parameters whose weights are latent, with these."""
    return [(p, p.latent) for p in params if p.latent is not None]


@torch.no_grad()
def show(algorithm: Algorithm, params: Sequence[SparseParam], noisy: bool = False) -> None:
    """Put the effective weights into the parameters."""
    if isinstance(algorithm, Latent):
        for p, _ in latents(params):
            p.place.weight.copy_(algorithm.effective(p, noisy)).masked_fill_(~p.mask, 0.0)
            p.noisy = noisy


@torch.no_grad()
def centre(algorithm: Latent, p: SparseParam) -> Tensor:
    """The effective weight without chance."""
    return algorithm.effective(p).masked_fill_(~p.mask, 0.0)


def pull_back(algorithm: Algorithm, params: Sequence[SparseParam]) -> None:
    """Turn the gradients into those of the latent weights, in place."""
    assert isinstance(algorithm, Latent)
    for p, _ in latents(params):
        gradient = p.place.weight.grad
        if gradient is not None:
            gradient.copy_(algorithm.pull_back(p, gradient))


def swap_in(algorithm: Algorithm, params: Sequence[SparseParam], scale: Tensor | None) -> None:
    """The optimizer steps next: give it the latent weights, and what their penalty adds to the gradients."""
    assert isinstance(algorithm, Latent)
    for p, latent in latents(params):
        gradient, extra = p.place.weight.grad, algorithm.penalty_gradient(p)
        if gradient is not None and extra is not None:
            gradient.add_(extra if scale is None else extra * scale)
        p.place.weight.copy_(latent)


def swap_out(algorithm: Algorithm, params: Sequence[SparseParam]) -> None:
    """The optimizer has stepped: what is in the parameters now are the new latent weights."""
    assert isinstance(algorithm, Latent)
    for p, _ in latents(params):
        algorithm.absorb(p, p.place.weight.detach())


def learn(
    algorithm: Algorithm, params: Sequence[SparseParam], groups: Sequence[Mapping[str, Any]], scale: Tensor | None
) -> None:
    """Step what is learned beside the weights, each with the settings of the group that holds its weight."""
    assert isinstance(algorithm, Latent)
    owner = {id(weight): group for group in groups for weight in group["params"]}
    for p, _ in latents(params):
        if p.place.weight.grad is not None:  # else the step does not touch the weight either
            algorithm.learn(p, owner[id(p.place.weight)], scale)
        p.scratch.clear()


def settle_latents(params: Sequence[SparseParam]) -> None:
    """Latent weights have done their work: what is shown is the weight from now on."""
    for p in params:
        p.latent = None
        p.scratch.clear()
        p.state.clear()
