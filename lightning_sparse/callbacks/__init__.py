"""The adapters between Lightning's hooks and the engine. Only here is Lightning imported."""

from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner
from lightning_sparse.callbacks.density_logger import DensityLogger
from lightning_sparse.callbacks.export_report import ExportReport
from lightning_sparse.callbacks.load import load_from_checkpoint
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse
from lightning_sparse.callbacks.regularizer import Regularizer

__all__ = [
    "BNChannelPruner",
    "DensityLogger",
    "ExportReport",
    "MaskUpdater",
    "QuantizeSparse",
    "Regularizer",
    "load_from_checkpoint",
]
