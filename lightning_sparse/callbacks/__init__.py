"""The adapters between Lightning's hooks and the engine. Only here is Lightning imported."""

from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner
from lightning_sparse.callbacks.density_logger import DensityLogger
from lightning_sparse.callbacks.load import load_from_checkpoint
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.regularizer import Regularizer

__all__ = ["BNChannelPruner", "DensityLogger", "MaskUpdater", "Regularizer", "load_from_checkpoint"]
