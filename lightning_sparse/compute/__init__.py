"""Layers that hold and compute only non-zeros, and the kernels under them."""

from lightning_sparse.compute.conv import SparseConv2d
from lightning_sparse.compute.embedding import SparseEmbedding
from lightning_sparse.compute.layer import SparseLayer
from lightning_sparse.compute.linear import SparseLinear
from lightning_sparse.core.compact import followed

__all__ = ["SparseConv2d", "SparseEmbedding", "SparseLayer", "SparseLinear", "followed"]
