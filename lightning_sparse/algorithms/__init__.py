"""The catalogue: one frozen dataclass an algorithm."""

from lightning_sparse.algorithms.acdc import ACDC
from lightning_sparse.algorithms.at_init import SNIP, Static
from lightning_sparse.algorithms.base import DropGrow, Periodic
from lightning_sparse.algorithms.dense_to_sparse import GMP
from lightning_sparse.algorithms.dynamic import SET, RigL, SparseMomentum
from lightning_sparse.algorithms.global_magnitude import GlobalMagnitude
from lightning_sparse.algorithms.granet import GraNet
from lightning_sparse.algorithms.grasp import GraSP
from lightning_sparse.algorithms.mest import MEST
from lightning_sparse.algorithms.reallocating import DSR
from lightning_sparse.algorithms.srigl import SRigL
from lightning_sparse.algorithms.synflow import SynFlow
from lightning_sparse.core.algorithm import Algorithm

ALGORITHMS: dict[str, type[Algorithm]] = {
    "static": Static,
    "snip": SNIP,
    "grasp": GraSP,
    "synflow": SynFlow,
    "set": SET,
    "rigl": RigL,
    "sparse_momentum": SparseMomentum,
    "dsr": DSR,
    "mest": MEST,
    "srigl": SRigL,
    "gmp": GMP,
    "global_magnitude": GlobalMagnitude,
    "granet": GraNet,
    "acdc": ACDC,
}

__all__ = [
    "ACDC",
    "ALGORITHMS",
    "DSR",
    "GMP",
    "MEST",
    "SET",
    "SNIP",
    "DropGrow",
    "GlobalMagnitude",
    "GraNet",
    "GraSP",
    "Periodic",
    "RigL",
    "SRigL",
    "SparseMomentum",
    "Static",
    "SynFlow",
]
