"""Proximal gradient descent: exact zeros from an L1 penalty, of weights or of rows."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_sparse.core.values import is_number
from lightning_sparse.optim.base import Group, MaskedOptimizer, negative
from lightning_sparse.optim.masked import MaskedSGD


def soft_threshold(weight: Tensor, by: float | Tensor) -> None:
    """Move every entry towards zero by ``by`` and stop there, in place.

    The proximal operator of ``by * sum(abs(weight))`` (Parikh & Boyd 2014, section 6.5.2).

    Args:
        weight: any shape.
        by: >= 0; a tensor has one element.

    Example:
        >>> weight = torch.tensor([1.0, -0.25, -0.75])
        >>> soft_threshold(weight, 0.5)
        >>> weight.tolist()
        [0.5, 0.0, -0.25]
    """
    weight.sub_(weight.clamp(-by, by))  # type: ignore[arg-type]  # numbers or tensors, as the learning rate is


def shrink_rows(weight: Tensor, by: float | Tensor) -> None:
    """Shorten every row ``weight[i]`` by ``by``, in place; a row that is shorter becomes zero.

    The proximal operator of ``by * sum(norm(row))`` (Parikh & Boyd 2014, section 6.5.4: block soft thresholding).

    Args:
        weight: two dimensions or more.
        by: > 0; a tensor has one element.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> shrink_rows(weight, 1.0)
        >>> weight.tolist()
        [[2.4..., 3.2...], [0.0, 0.0]]
    """
    rows = weight.flatten(1)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    cut = (by / norms).clamp(max=1)  # a row of zeros: infinity, cut to 1, of nothing
    weight.sub_((rows * cut).view_as(weight))


class ProxSGD(MaskedSGD):
    """SGD whose weights become exactly zero under an L1 penalty: a gradient step, then the penalty's proximal step.

    Minimises ``loss + l1 * sum(abs(weight))``, or with ``groups="rows"`` ``loss + l1 * sum(norm(row))``: group lasso,
    where whole rows become zero. A row is ``weight[i]``: an output neuron of a Linear, an output channel of a
    convolution (of a transposed one, which stores inputs first, an input channel); it counts once, whatever its length.

    The subgradient of an L1 term in the loss makes weights small, and the next step undoes its zeros. Here the loss
    takes its step, then the penalty takes its own: every weight moves towards zero by ``lr * l1`` and stops there
    (ISTA; Parikh & Boyd 2014, section 4.2, https://web.stanford.edu/~boyd/papers/prox_algs.html).

    Momentum multiplies what a steady gradient does by ``(1 - dampening) / (1 - momentum)``; the proximal step is
    multiplied by the same, so that the minimum is that of the loss and the penalty above whatever the momentum. The
    momentum is of gradients only: a weight at zero keeps its own, and leaves zero when that outweighs the penalty.
    This is not FISTA, which looks ahead before the gradient.

    Penalised are parameters of two dimensions or more. Biases and the gains of norms are left out: they are few, zeros
    in them save nothing, and a gain or a bias at zero changes what a layer can say. An embedding counts as a weight;
    a group of its own with ``l1=0`` leaves it out.

    ``weight_decay`` stays in the gradient and makes the penalty an elastic net: it adds
    ``weight_decay / 2 * sum(weight ** 2)``. Under masks only live weights are penalised; one at exactly zero is still
    live, and the mask's density does not count it as pruned.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate.
        momentum: in [0, 1); 0 for none.
        dampening: of what is added to the momentum, in [0, 1).
        weight_decay: coupled: added to the gradient as ``weight_decay * weight``.
        nesterov: Nesterov's momentum.
        l1: strength of the penalty, in units of the loss; 0 for none: then this is :class:`MaskedSGD`.
        groups: "none": every weight for itself; "rows": whole rows.
        maximize: the loss goes up instead of down; the penalty still shrinks.

    Raises:
        ValueError: on options that cannot be right, all at once.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 0.5, -0.25]]))
        >>> optimizer = ProxSGD([weight], lr=0.5, l1=1.0)
        >>> (0 * weight).sum().backward()  # a loss that does not care
        >>> optimizer.step()
        >>> weight.tolist()
        [[0.5, 0.0, 0.0]]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        l1: float = 1e-4,
        groups: Literal["none", "rows"] = "none",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "l1": l1,
            "groups": groups,
        }
        MaskedOptimizer.__init__(self, params, defaults)  # MaskedSGD's would look at options that lack two

    def problems(self, options: Group) -> list[str]:
        """What is wrong with the options of a group, a sentence each."""
        found = super().problems(options) + negative(options, "l1")
        momentum, dampening, groups = options["momentum"], options["dampening"], options["groups"]
        found += [f"momentum must be below 1, got {momentum}"] if is_number(momentum) and momentum >= 1 else []
        if is_number(dampening) and not 0 <= dampening < 1:
            found.append(f"dampening must be in [0, 1), got {dampening}")
        if not isinstance(groups, str) or groups not in ("none", "rows"):
            found.append(f"groups must be 'none' or 'rows', got {groups!r}")
        return found

    def update(self, group: Group, params: Sequence[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """The gradient step, then the proximal one."""
        super().update(group, params, weights, gradients)
        if group["l1"] == 0:
            return
        steady = (1 - group["dampening"]) / (1 - group["momentum"]) if group["momentum"] else 1.0
        by = group["lr"] * group["l1"] * steady
        for p, weight in zip(params, weights, strict=True):
            if p.ndim < 2:
                continue
            if group["groups"] == "none":
                soft_threshold(weight, by)
            elif (at := self._place(p)) is None:
                shrink_rows(weight, by)
            else:  # sums over rows of live entries, in the same order on every run
                full = at.spread(weight, like=p)
                shrink_rows(full, by)
                weight.copy_(at.take(full))
