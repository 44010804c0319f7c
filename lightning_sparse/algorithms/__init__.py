"""The catalogue: one frozen dataclass an algorithm."""

from lightning_sparse.algorithms.at_init import Static
from lightning_sparse.algorithms.base import DropGrow, Periodic
from lightning_sparse.algorithms.dense_to_sparse import GMP
from lightning_sparse.algorithms.dynamic import SET, RigL, SparseMomentum
from lightning_sparse.core.algorithm import Algorithm

ALGORITHMS: dict[str, type[Algorithm]] = {
    "static": Static,
    "set": SET,
    "rigl": RigL,
    "sparse_momentum": SparseMomentum,
    "gmp": GMP,
}

__all__ = ["ALGORITHMS", "GMP", "SET", "DropGrow", "Periodic", "RigL", "SparseMomentum", "Static"]
