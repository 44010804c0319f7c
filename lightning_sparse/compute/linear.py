"""A linear layer that computes only its non-zeros."""

import torch
from torch import Tensor, nn

from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.ops import linear


class SparseLinear(SparseLayer):
    """``y = x W^T + b``, with only the live entries of ``W`` held, multiplied and differentiated.

    Made by :meth:`from_dense`. Under autocast the input is cast as ``nn.Linear`` casts it; values stay as they are, and
    sums are in float32 at least.

    Example:
        >>> dense = nn.Linear(3, 2)
        >>> mask = torch.tensor([[True, False, True], [False, False, True]])
        >>> layer = SparseLinear.from_dense(dense, mask)
        >>> layer
        SparseLinear(in_features=3, out_features=2, bias=True, live=3)
        >>> x = torch.randn(4, 3)
        >>> torch.allclose(layer(x), x @ (dense.weight * mask).t() + dense.bias, atol=1e-6)
        True
        >>> list(layer.state_dict()), [name for name, _ in layer.named_parameters()]
        (['weight', 'bias'], ['values', 'bias'])
    """

    @classmethod
    def from_dense(cls, module: nn.Linear, mask: Tensor | None = None) -> "SparseLinear":
        """A sparse layer with the weights of a dense one, whose bias it shares.

        Args:
            module: stays as it is.
            mask: bool, of the weight's shape, True for live; its non-zeros by default.
        """
        weight = module.weight
        layer = cls(weight, weight != 0 if mask is None else mask, module.bias)
        return layer.train(module.training)

    def to_dense(self) -> nn.Linear:
        """The dense layer, with zeros; it shares the bias."""
        with torch.device("meta"):
            dense = nn.Linear(self.in_features, self.out_features, bias=False)
        dense.weight = nn.Parameter(self.dense_weight().detach(), requires_grad=self.values.requires_grad)
        dense.bias = self.bias  # type: ignore[assignment]  # nn.Linear says Parameter, and takes None
        return dense.train(self.training)

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the output's last dimension."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"SparseLinear with {self.in_features} inputs got x of shape {list(x.shape)}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self.watch(linear(x, self.values, self.bias, self.index), x)

    def _dense_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        dtype = self.values.dtype
        return grad.reshape(-1, self.out_features).t().to(dtype) @ x.reshape(-1, self.in_features).to(dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"live={self.live}"
        )
