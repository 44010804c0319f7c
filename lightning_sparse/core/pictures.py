"""Pictures of masks, as grey images in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_picture(mask: Tensor, side: int = 256) -> Tensor:
    """A weight's mask as an image: outputs down, inputs (times kernel) across; white lives.

    Args:
        mask: bool, two dimensions or more.
        side: longest side in pixels; larger masks are averaged down, so grey is a share of live weights.

    Returns:
        float32 of shape (height, width).

    Example:
        >>> mask_picture(torch.eye(2).bool()).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    flat = mask.flatten(1).float()
    shape = (min(flat.shape[0], side), min(flat.shape[1], side))
    return F.adaptive_avg_pool2d(flat[None], shape)[0].cpu()


def density_picture(history: Sequence[Sequence[float]], height: int = 8, width: int = 4) -> Tensor:
    """Density over time as an image: a band for each layer, a column for each update; white is dense.

    Args:
        history: densities of the layers at each update.
        height: pixels a layer.
        width: pixels an update; old columns are averaged when there are more than 256.

    Returns:
        float32 of shape (layers * height, updates * width).

    Example:
        >>> density_picture([[0.1, 1.0], [0.2, 0.9]], height=1, width=1)
        tensor([[0.1000, 0.2000],
                [1.0000, 0.9000]])
    """
    grid = torch.tensor(history, dtype=torch.float32).T
    grid = F.adaptive_avg_pool1d(grid[None], min(grid.shape[1], 256))[0]
    return grid.repeat_interleave(height, 0).repeat_interleave(width, 1)
