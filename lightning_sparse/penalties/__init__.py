"""Penalties on weights, BatchNorm gammas and activations: formulas, and the engines that apply them in any loop."""

from lightning_sparse.penalties.activations import ActivationRegularizer
from lightning_sparse.penalties.base import Penalty
from lightning_sparse.penalties.formulas import L1, L2, PENALTIES, Elastic, GroupLasso, Hoyer
from lightning_sparse.penalties.strength import Strength
from lightning_sparse.penalties.weights import WeightRegularizer

__all__ = [
    "L1",
    "L2",
    "PENALTIES",
    "ActivationRegularizer",
    "Elastic",
    "GroupLasso",
    "Hoyer",
    "Penalty",
    "Strength",
    "WeightRegularizer",
]
