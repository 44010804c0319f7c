"""The adapters between Lightning's hooks and the engine. Only here is Lightning imported."""

from lightning_sparse.callbacks.density_logger import DensityLogger
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.regularizer import Regularizer

__all__ = ["DensityLogger", "MaskUpdater", "Regularizer"]
