"""How much a loss is expected to grow when weights are quantized."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from lightning_sparse.core.probe import Probe
from lightning_sparse.quant.grid import snap


def squared_gradients(probe: Probe, names: Sequence[str], batches: int) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: squared gradients, averaged over batches and ranks.

    At a trained model it stands for the second derivative of the loss, at the price of one backward pass a batch
    (Theis et al. 2018, https://arxiv.org/abs/1801.05787, equation 8, for pruning). The smaller the batches the better:
    the square of a mean gradient is not the mean of squares. Only ratios between weights are of use.

    Args:
        probe: a copy of the model with batches and a loss.
        names: of its parameters.
        batches: how many are looked at, at most.

    Raises:
        ValueError: if there is no batch, or the loss does not depend on a parameter.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(1, 1, bias=False)
        >>> probe = Probe(net, [torch.tensor([[1.0]]), torch.tensor([[3.0]])], lambda model, batch: model(batch).sum())
        >>> squared_gradients(probe, ["weight"], batches=2)["weight"]  # of gradients 1 and 3
        tensor([[5.]])
    """
    weights = probe.weights(names)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    taken = 0
    for batch in islice(probe.batches(), batches):
        found = torch.autograd.grad(probe.loss(batch), list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name].addcmul_(gradient.float(), gradient.float())
        taken += 1
    if not taken:
        raise ValueError("bits are chosen by the loss of training batches, and there is none")
    if unused := [name for name, value in total.items() if not value.any()]:
        raise ValueError(f"the loss does not depend on {', '.join(unused)}; exclude them from quantization")
    return probe.mean({name: value / taken for name, value in total.items()})


@torch.no_grad()
def harm(weight: Tensor, squared: Tensor, axis: int, choices: Sequence[int]) -> dict[int, float]:
    """The expected growth of the loss at each number of bits: half the sum of squared gradient times squared error.

    Args:
        weight: the float weight; zeros are dead and have no error.
        squared: what :func:`squared_gradients` found for it.
        axis: of the output channels.
        choices: numbers of bits.

    Example:
        >>> weight = torch.tensor([[8.0, 0.0, -1.6]])
        >>> {bits: round(value, 3) for bits, value in harm(weight, torch.ones(1, 3), 0, [4]).items()}  # -1.6 becomes -2
        {4: 0.08}
    """
    work, found = torch.empty(weight.shape), dict[int, float]()
    for bits in choices:
        shown = weight.float().clone()
        snap(shown, bits, axis, work)
        found[bits] = 0.5 * float((squared * shown.sub_(weight).square_()).sum(dtype=torch.float64))
    return found
