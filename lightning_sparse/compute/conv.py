"""A convolution that computes only its non-zeros."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sparse.compute.convolutions import Index, conv2d
from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.topology import Topology, conv_topology


class SparseConv2d(SparseLayer):
    """A two-dimensional convolution with only the live entries of its weight held, multiplied and differentiated.

    Groups, dilation, other padding than zeros and "same" padding of even kernels are computed by torch's dense
    convolution: then only memory is saved.

    Example:
        >>> dense = nn.Conv2d(2, 3, 3, padding=1)
        >>> mask = torch.rand(3, 2, 3, 3) < 0.3
        >>> layer = SparseConv2d.from_dense(dense, mask)
        >>> x = torch.randn(4, 2, 5, 5)
        >>> torch.allclose(layer(x), F.conv2d(x, dense.weight * mask, dense.bias, padding=1), atol=1e-6)
        True
    """

    def __init__(self, module: nn.Conv2d, mask: Tensor) -> None:
        super().__init__(module.weight, mask, module.bias)
        self.kernel = cast("tuple[int, int]", module.kernel_size)
        self.stride = cast("tuple[int, int]", module.stride)
        self.padding = cast("str | tuple[int, int]", module.padding)
        self.dilation, self.groups, self.padding_mode = module.dilation, module.groups, module.padding_mode

    @classmethod
    def from_dense(cls, module: nn.Conv2d, mask: Tensor | None = None) -> "SparseConv2d":
        """A sparse layer with the weights of a dense one, whose bias it shares.

        Args:
            module: stays as it is.
            mask: bool, of the weight's shape, True for live; its non-zeros by default.
        """
        layer = cls(module, module.weight != 0 if mask is None else mask)
        return layer.train(module.training)

    def to_dense(self) -> nn.Conv2d:
        """The dense layer, with zeros; it shares the bias."""
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        with torch.device("meta"):
            dense = nn.Conv2d(
                self.shape[1] * self.groups, self.shape[0], self.kernel, groups=self.groups, bias=False,
                padding_mode=self.padding_mode, **options,  # type: ignore[arg-type]
            )  # fmt: skip
        dense.weight = nn.Parameter(self.dense_weight().detach(), requires_grad=self.values.requires_grad)
        dense.bias = self.bias
        return dense.train(self.training)

    @property
    def direct(self) -> bool:
        """Whether it computes non-zeros only."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        return plain and self._even() is not None

    def forward(self, x: Tensor) -> Tensor:
        channels = self.shape[1] * self.groups
        if x.dim() not in (3, 4) or x.shape[-3] != channels:
            raise ValueError(f"SparseConv2d with {channels} input channels got x of shape {list(x.shape)}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        images = x if x.dim() == 4 else x[None]
        y = self._direct(images) if self.direct else self._dense(images)
        y = self.watch(y, images)
        return y if x.dim() == 4 else y[0]

    def _direct(self, x: Tensor) -> Tensor:
        padding = cast("tuple[int, int]", self._even())
        index = cast(Index, self.index)
        return conv2d(x, self.values, self.bias, index, self.kernel, self.stride, padding)

    def _dense(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.dense_weight() if weight is None else weight
        bias = None if self.bias is None else self.bias.to(x.dtype)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._edges(), mode=self.padding_mode), (0, 0)
        return F.conv2d(x, weight.to(x.dtype), bias, self.stride, padding, self.dilation, self.groups)

    def _even(self) -> tuple[int, int] | None:
        """Zeros on each side of height and width; None where the two sides differ."""
        if not isinstance(self.padding, str):
            return self.padding
        left, right, top, bottom = self._edges()
        return (top, left) if left == right and top == bottom else None

    def _edges(self) -> list[int]:
        """What ``F.pad`` takes: left, right, top, bottom."""
        if not isinstance(self.padding, str):
            return [n for n in reversed(self.padding) for _ in range(2)]
        if self.padding == "valid":
            return [0, 0, 0, 0]
        whole = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        return [n for total in reversed(whole) for n in (total // 2, total - total // 2)]

    def _dense_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            weight = torch.zeros(self.shape, dtype=self.values.dtype, device=x.device, requires_grad=True)
            y = self._dense(x.to(weight.dtype), weight)
        return torch.autograd.grad(y, weight, grad.to(y.dtype))[0]

    def _topology(self, mask: Tensor) -> Topology:
        return conv_topology(mask)

    def extra_repr(self) -> str:
        return (
            f"{self.shape[1] * self.groups}, {self.shape[0]}, kernel_size={self.kernel}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, live={self.live}"
        )
