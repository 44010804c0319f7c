"""Channels physically out of a model: which tensors share them, and how they are cut."""

from lightning_sparse.channels.atoms import Atom, Graph, Kept, Place, kept_indices
from lightning_sparse.channels.criteria import Activation, BNStd, BNVariance, Gamma, Random, WeightNorm
from lightning_sparse.channels.criterion import Criterion
from lightning_sparse.channels.gates import Sensitivity, Taylor
from lightning_sparse.channels.parts import Part
from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.report import ChannelReport
from lightning_sparse.channels.shrink import mask, shrink
from lightning_sparse.channels.slim import slim
from lightning_sparse.channels.trace import Tracer, analyse

__all__ = [
    "Activation",
    "Atom",
    "BNStd",
    "BNVariance",
    "ChannelReport",
    "Criterion",
    "Gamma",
    "Graph",
    "Kept",
    "Part",
    "Place",
    "Random",
    "Sensitivity",
    "Taylor",
    "Tracer",
    "WeightNorm",
    "analyse",
    "kept_indices",
    "mask",
    "probe",
    "shrink",
    "slim",
]
