"""How many bits each layer gets, where the user has not said it."""

from collections.abc import Mapping, Sequence

from lightning_sparse.core.masks import positions_bits
from lightning_sparse.core.probe import Probe
from lightning_sparse.core.select import modules_of
from lightning_sparse.quant.budget import assign
from lightning_sparse.quant.grid import output_axis
from lightning_sparse.quant.layers import parameter
from lightning_sparse.quant.sensitivity import harm, squared_gradients

CHOICES = (2, 3, 4, 6, 8)


def choose_bits(
    probe: Probe,
    names: Sequence[str],
    *,
    avg_bits: float | None = None,
    max_bytes: int | None = None,
    batches: int = 32,
    choices: Sequence[int] = CHOICES,
) -> dict[str, int]:
    """Bits of each layer, by its name: those that are expected to harm the loss least under a budget.

    Args:
        probe: a copy of the model with batches and a loss.
        names: of the layers.
        avg_bits: bits of a live weight, on average.
        max_bytes: instead: of all these weights when stored: codes, positions at their entropy, scales.
        batches: of the data that are looked at.
        choices: numbers of bits.

    Raises:
        ValueError: if there are no batches, or the fewest bits do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        >>> probe = Probe(net, [torch.randn(4, 4)], lambda model, batch: model(batch).square().mean())
        >>> sorted(set(choose_bits(probe, ["0", "1"], avg_bits=8).values()))
        [8]
    """
    modules = modules_of(probe.model)
    squared = squared_gradients(probe, [parameter(name) for name in names], batches)
    weights = probe.weights([parameter(name) for name in names])
    harms, costs = dict[str, Mapping[int, float]](), dict[str, Mapping[int, float]]()
    for name in names:
        weight, axis = weights[parameter(name)].detach(), output_axis(modules[name])
        harms[name] = harm(weight, squared[parameter(name)], axis, choices)
        live = int(weight.count_nonzero())
        fixed = 0.0 if max_bytes is None else positions_bits(weight.numel(), live) / 8 + 4 * weight.shape[axis]
        unit = 1.0 if max_bytes is None else 1 / 8
        costs[name] = {bits: bits * live * unit + fixed for bits in choices}
    total = sum(int(weight.count_nonzero()) for weight in weights.values())
    budget = float(max_bytes) if max_bytes is not None else (avg_bits or 8.0) * total
    return assign(harms, costs, budget)
