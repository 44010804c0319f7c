"""Sparse training for PyTorch Lightning: one callback, any LightningModule, no change to the model's code."""

from lightning_sparse import export
from lightning_sparse.algorithms import (
    ACDC,
    DSR,
    GMP,
    MEST,
    SET,
    SNIP,
    DropGrow,
    GlobalMagnitude,
    GraNet,
    GraSP,
    Periodic,
    RigL,
    SparseMomentum,
    SRigL,
    Static,
    SynFlow,
)
from lightning_sparse.callbacks import (
    BNChannelPruner,
    DensityLogger,
    ExportReport,
    MaskUpdater,
    QuantizeSparse,
    Regularizer,
    load_from_checkpoint,
)
from lightning_sparse.channels.criterion import Criterion
from lightning_sparse.channels.report import ChannelReport
from lightning_sparse.channels.restore import ShapeFollowing
from lightning_sparse.channels.slim import slim
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.grouped import NM, FanIn
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Block, Channel, Pattern, Unstructured
from lightning_sparse.core.plan import Plan, plan
from lightning_sparse.core.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    LinearSchedule,
    Schedule,
    StagedSchedule,
)
from lightning_sparse.core.sparsifier import Sparsifier
from lightning_sparse.reparam import L0, SRSTE, STR, TopKAST

__version__ = "0.1.0.dev0"

__all__ = [
    "ACDC",
    "DSR",
    "GMP",
    "L0",
    "MEST",
    "NM",
    "SET",
    "SNIP",
    "SRSTE",
    "STR",
    "Algorithm",
    "BNChannelPruner",
    "Block",
    "Channel",
    "ChannelReport",
    "ConstantSchedule",
    "CosineSchedule",
    "Criterion",
    "CubicSchedule",
    "DensityLogger",
    "DropGrow",
    "ExportReport",
    "FanIn",
    "GlobalMagnitude",
    "GraNet",
    "GraSP",
    "LinearSchedule",
    "MaskUpdater",
    "Pattern",
    "Periodic",
    "Plan",
    "QuantizeSparse",
    "Regularizer",
    "RigL",
    "SRigL",
    "Schedule",
    "ShapeFollowing",
    "SparseMomentum",
    "SparseParam",
    "Sparsifier",
    "StagedSchedule",
    "Static",
    "SynFlow",
    "TopKAST",
    "Unstructured",
    "export",
    "load_from_checkpoint",
    "plan",
    "slim",
]
