"""Every algorithm by the name that callbacks and YAML know it by."""

from lightning_sparse.algorithms import ALGORITHMS as MASKS
from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.reparam import ALGORITHMS as LATENTS

ALGORITHMS: dict[str, type[Algorithm]] = {**MASKS, **LATENTS}
