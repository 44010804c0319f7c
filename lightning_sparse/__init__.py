"""Sparse training for PyTorch Lightning: one callback, any LightningModule, no change to the model's code."""

from lightning_sparse.algorithms import GMP, SET, DropGrow, Periodic, RigL, SparseMomentum, Static
from lightning_sparse.callbacks import DensityLogger, MaskUpdater
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.masks import Pattern, Unstructured
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.plan import Plan, plan
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule, CubicSchedule, LinearSchedule, Schedule
from lightning_sparse.core.sparsifier import Sparsifier

__version__ = "0.1.0.dev0"

__all__ = [
    "GMP",
    "SET",
    "Algorithm",
    "ConstantSchedule",
    "CosineSchedule",
    "CubicSchedule",
    "DensityLogger",
    "DropGrow",
    "LinearSchedule",
    "MaskUpdater",
    "Pattern",
    "Periodic",
    "Plan",
    "RigL",
    "Schedule",
    "SparseMomentum",
    "SparseParam",
    "Sparsifier",
    "Static",
    "Unstructured",
    "plan",
]
