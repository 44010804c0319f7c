"""Where the live weights of one parameter are, in memory of any layout."""

import torch
from torch import Tensor

from lightning_sparse.core.masks import unpack_bits

_INT32 = 2**31 - 1


class Places:
    """Reads and writes the live entries of tensors that have a parameter's shape.

    The entries come as a 1-D tensor of length ``live``, in the order of a row-major walk, whatever the strides: a
    convolution in ``channels_last`` and its contiguous gradient give the same order.

    Args:
        bits: the mask, as :func:`pack_bits` packs it.
        weight: the parameter; its shape and device count.

    Attributes:
        bits: the very tensor that was given.
        index: of the live entries, in the row-major order, on the weight's device; int32 where that is enough, as it
            is held as long as the optimizer.

    Example:
        >>> from lightning_sparse.core.masks import pack_bits
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> at = Places(pack_bits(weight > 2), weight)
        >>> at.take(weight)
        tensor([3., 4.])
        >>> at.put(weight, torch.tensor([7.0, 8.0]))
        >>> weight.tolist()
        [[1.0, 2.0], [7.0, 8.0]]
    """

    def __init__(self, bits: Tensor, weight: Tensor) -> None:
        self.bits, self._shape = bits, weight.shape
        found = unpack_bits(bits, weight.shape).flatten().nonzero().squeeze(1)
        self.index = found.to(weight.device, torch.int32 if weight.numel() <= _INT32 else torch.int64)
        self._strided: dict[tuple[int, ...], Tensor] = {}

    def take(self, tensor: Tensor) -> Tensor:
        """A copy of the live entries, shape ``(live,)``."""
        flat, index = self._flat(tensor)
        return flat.index_select(0, index)

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write the live entries, in place; the others are not touched."""
        flat, index = self._flat(tensor)
        flat.scatter_(0, index.long(), values)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """A new tensor of the layout of ``like``: the values where weights live, zero elsewhere."""
        full = torch.zeros_like(like, dtype=values.dtype, requires_grad=False)
        self.put(full, values)
        return full

    def _flat(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The tensor's memory as a vector, and where in it the live entries are."""
        if tensor.is_contiguous():
            return tensor.detach().view(-1), self.index
        strides = tensor.stride()
        if strides not in self._strided:
            axes = torch.unravel_index(self.index.long(), self._shape)
            where = sum((axis * stride for axis, stride in zip(axes, strides, strict=True)), torch.zeros_like(axes[0]))
            self._strided[strides] = where.to(self.index.dtype)
        length = 1 + sum((n - 1) * stride for n, stride in zip(self._shape, strides, strict=True))
        return tensor.detach().as_strided((length,), (1,)), self._strided[strides]
