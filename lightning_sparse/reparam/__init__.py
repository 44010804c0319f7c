"""Learned and straight-through sparsity: weights that are a function of latent ones."""

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.reparam.hard_concrete import L0
from lightning_sparse.reparam.soft_threshold import STR
from lightning_sparse.reparam.srste import SRSTE
from lightning_sparse.reparam.topkast import TopKAST

ALGORITHMS: dict[str, type[Algorithm]] = {"str": STR, "l0": L0, "topkast": TopKAST, "srste": SRSTE}

__all__ = ["ALGORITHMS", "L0", "SRSTE", "STR", "TopKAST"]
