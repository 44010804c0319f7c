"""What nested containers hold."""

import torch
from torch import Tensor


def leaves(value: object, at: tuple = ()) -> dict[tuple, object]:
    """Every leaf of nested containers by its path."""
    if isinstance(value, dict | list | tuple):
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in rows for path, leaf in leaves(part, (*at, key)).items()}
    return {at: value}


def equal(left: object, right: object) -> bool:
    a, b = leaves(left), leaves(right)
    return a.keys() == b.keys() and all(
        torch.equal(x, b[key]) if isinstance(x, Tensor) else x == b[key] for key, x in a.items()
    )
