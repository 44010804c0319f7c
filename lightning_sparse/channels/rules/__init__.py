"""What operations do with channels; one file a family. An operation without a rule freezes what it touches."""

from lightning_sparse.channels.rules import layers, losses, norms, parts, pointwise, reductions, shapes, spatial
from lightning_sparse.channels.rules.registry import RULES, NoRule, Op, rule

__all__ = [
    "RULES",
    "NoRule",
    "Op",
    "layers",
    "losses",
    "norms",
    "parts",
    "pointwise",
    "reductions",
    "rule",
    "shapes",
    "spatial",
]
