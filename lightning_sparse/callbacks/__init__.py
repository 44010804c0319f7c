"""The adapters between Lightning's hooks and the engine. Only here is Lightning imported."""

from lightning_sparse.callbacks.density_logger import DensityLogger
from lightning_sparse.callbacks.mask_updater import MaskUpdater

__all__ = ["DensityLogger", "MaskUpdater"]
