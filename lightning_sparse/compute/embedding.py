"""An embedding that holds only its non-zeros."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_sparse.compute.layer import SparseLayer


class SparseEmbedding(SparseLayer):
    """A table with only its live entries held; a look-up gathers those of the rows that are asked for.

    It saves memory, of values, gradients and optimizer state; look-ups take longer than dense ones.

    Example:
        >>> dense = nn.Embedding(5, 3)
        >>> mask = torch.rand(5, 3) < 0.5
        >>> layer = SparseEmbedding.from_dense(dense, mask)
        >>> torch.equal(layer(torch.tensor([[4, 0]])), (dense.weight * mask)[[4, 0]][None])
        True
    """

    common: ClassVar[bool] = False

    @classmethod
    def from_dense(cls, module: nn.Embedding, mask: Tensor | None = None) -> "SparseEmbedding":
        """A sparse table with the weights of a dense one.

        Args:
            module: stays as it is.
            mask: bool, of the weight's shape, True for live; its non-zeros by default.

        Raises:
            ValueError: on an embedding that renormalises, scales or gives sparse gradients.
        """
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise ValueError(
                "an embedding with max_norm, scale_grad_by_freq or sparse=True has no sparse form: keep it dense"
            )
        layer = cls(module.weight, module.weight != 0 if mask is None else mask, None)
        layer.padding_idx = module.padding_idx
        return layer.train(module.training)

    def __init__(self, weight: Tensor, mask: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight, mask, bias)
        self.padding_idx: int | None = None

    def to_dense(self) -> nn.Embedding:
        """The dense table, with zeros."""
        weight = self.dense_weight().detach()
        dense = nn.Embedding(self.shape[0], self.shape[1], padding_idx=self.padding_idx, _weight=weight)
        return dense.requires_grad_(self.values.requires_grad).train(self.training)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.shape[0]:
            raise IndexError(f"ids must be in [0, {self.shape[0]}), got {int(flat.min())} to {int(flat.max())}")
        per_row = (self.pointer.numel() - 1) // self.shape[0]
        row = self.pointer[::per_row].long()
        begin, lengths = row[flat], row.diff()[flat]
        which = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), lengths)
        first = lengths.cumsum(0) - lengths
        slot = begin[which] + torch.arange(len(which), device=flat.device) - first[which]
        values: Tensor = self.values
        if self.padding_idx is not None:  # its row gets no gradient
            inside = slice(int(row[self.padding_idx]), int(row[self.padding_idx + 1]))
            values = torch.cat([values[: inside.start], values[inside].detach(), values[inside.stop :]])
        y = values.new_zeros(len(flat) * self.shape[1])
        y = y.index_copy(0, which * self.shape[1] + self.column[slot], values[slot])
        return self.watch(y, ids).view(*ids.shape, self.shape[1])

    def _dense_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        ids, flat = x.reshape(-1), grad.reshape(-1, self.shape[1])
        if self.padding_idx is not None:
            flat = flat * (ids != self.padding_idx)[:, None]
        return flat.new_zeros(self.shape).index_add(0, ids, flat)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, live={self.live}"
