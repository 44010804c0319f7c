"""Parameters of a few weights, for tables that are worked by hand."""

import torch
from torch import nn

from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Unstructured
from lightning_sparse.core.select import Target


def param(weight, mask, grad=None, *, name="w", step=1, target=None, scope="layer", module=None):
    """A parameter with these numbers (lists, nested as its dimensions are); ``target`` is the planned live count."""
    mask = torch.as_tensor(mask).bool()
    module = nn.Module() if module is None else module
    module.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float32))
    target = int(mask.sum()) if target is None else target
    place = Target(name, module, "weight")
    p = SparseParam(place, density=target / mask.numel(), target=target, pattern=Unstructured(), scope=scope)
    p.set_mask(mask)
    p.dense_grad = None if grad is None else torch.as_tensor(grad, dtype=torch.float32)
    p.step = step
    return p


def live(mask):
    """Flat indices that live."""
    return mask.flatten().nonzero().flatten().tolist()


def after(algorithm, *params, step=1):
    """Flat indices that live after an update, a list for each layer; a layer that is not named keeps its mask."""
    masks = algorithm.update(params, step)
    return [live(masks.get(p.name, p.mask)) for p in params]


class Slopes(nn.Module):
    """Layers without bias whose gradients are what is set in ``slopes``; one row of weights each."""

    def __init__(self, *rows):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(len(row), 1, bias=False) for row in rows)
        for layer, row in zip(self.layers, rows, strict=True):
            layer.weight = nn.Parameter(torch.tensor([row], dtype=torch.float32))
        self.slopes = [torch.zeros(1, len(row)) for row in rows]

    def forward(self):
        return sum((layer.weight * slope).sum() for layer, slope in zip(self.layers, self.slopes, strict=True))


def steps(model, optimizer, n):
    """Train ``n`` steps, and stop after each to look."""
    for step in range(1, n + 1):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        yield step
