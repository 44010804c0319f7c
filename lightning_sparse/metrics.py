"""How sparse a model is and what its training costs, as torchmetrics."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class Density(Metric):
    """Live share of the weights under masks: what an algorithm was given.

    As input to ``forward`` and ``update``: ``masks``, bool tensors by name, as in ``MaskUpdater.masks``. A later update
    takes the place of an earlier one; all ranks hold the same masks, so nothing is summed over them.

    Example:
        >>> metric = Density()
        >>> metric.update({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> metric.compute()
        tensor(0.2500)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = True

    live: Tensor
    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("live", torch.tensor(0), dist_reduce_fx="max")
        self.add_state("size", torch.tensor(0), dist_reduce_fx="max")

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Count live weights."""
        self.live = torch.stack([m.count_nonzero() for m in masks.values()]).sum().to(self.live.device)
        self.size = torch.tensor(sum(m.numel() for m in masks.values()), device=self.live.device)

    def compute(self) -> Tensor:
        """The live share, in (0, 1]."""
        return self.live / self.size


class NonzeroDensity(Density):
    """Share of weights that are not zero: what a file would hold.

    It lags behind :class:`Density`: a grown weight is zero until it has learned. As input: ``weights`` by name.

    Example:
        >>> metric = NonzeroDensity()
        >>> metric.update({"fc.weight": torch.tensor([[0.5, 0.0], [0.0, -1.0]])})
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Count weights that are not zero."""
        super().update({name: weight.detach() for name, weight in weights.items()})


def step_flops(sparse: float, dense: float, dense_gradient: bool = False) -> float:
    """FLOPs of one training step, given the forward FLOPs of its samples; see :class:`TrainingFLOPs`.

    Example:
        >>> step_flops(0.2, 1.0), step_flops(0.2, 1.0, dense_gradient=True)
        (0.6000000000000001, 1.4)
    """
    return 2 * sparse + dense if dense_gradient else 3 * sparse


class TrainingFLOPs(Metric):
    """FLOPs that training has taken so far, and their share of a dense run's.

    Counted as the field does (Evci et al. 2020, https://arxiv.org/abs/1911.11134, appendix H): the backward pass
    costs twice the forward; a step that needs the dense gradient pays two sparse passes and a dense one. This is what
    hardware that skips zeros would do, not what a dense kernel does.

    Args:
        share: whether ``compute`` gives the share of the dense run instead of FLOPs.

    Example:
        >>> metric = TrainingFLOPs(share=True)
        >>> for step in range(1, 101):  # RigL: f_s = 0.2 f_d, a dense gradient every 100 steps
        ...     metric.update(sparse=0.2, dense=1.0, dense_gradient=step % 100 == 0)
        >>> round(float(metric.compute()), 4)
        0.2027
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    flops: Tensor
    dense: Tensor

    def __init__(self, share: bool = False) -> None:
        super().__init__()
        self.share = share
        self.add_state("flops", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("dense", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sparse: float, dense: float, dense_gradient: bool = False) -> None:
        """Add one optimizer step.

        Args:
            sparse: forward FLOPs of the step's samples in the sparse model.
            dense: the same in the dense model.
            dense_gradient: whether the algorithm needed the gradient of dead weights.
        """
        self.flops += step_flops(sparse, dense, dense_gradient)
        self.dense += step_flops(dense, dense)

    def compute(self) -> Tensor:
        """FLOPs, or their share of the dense run."""
        return self.flops / self.dense if self.share else self.flops
