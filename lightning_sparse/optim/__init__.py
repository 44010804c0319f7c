"""Optimizers for sparse weights: state and arithmetic for what lives (not torch's ``SparseAdam``: sparse gradients)."""

from lightning_sparse.optim.masked import MaskedAdam, MaskedAdamW, MaskedSGD
from lightning_sparse.optim.prox import ProxSGD

__all__ = ["MaskedAdam", "MaskedAdamW", "MaskedSGD", "ProxSGD"]
