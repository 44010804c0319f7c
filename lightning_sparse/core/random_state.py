"""The random states of a process, saved and set back: Lightning's checkpoints leave them out."""

import random
import sys
from typing import Any

import torch
from torch import Tensor


def save_random_state() -> dict[str, Any]:
    """The states of torch, CUDA, numpy (where imported) and Python, as tensors and ints.

    Example:
        >>> state = save_random_state()
        >>> first = torch.rand(1), random.random()
        >>> load_random_state(state)
        >>> first == (torch.rand(1), random.random())
        True
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
    }
    if "numpy" in sys.modules:
        kind, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        numbers = (int(position), int(has_gauss), float(cached))  # numpy's own would not load with weights_only=True
        state["numpy"] = (kind, torch.tensor(keys.tolist(), dtype=torch.int64), *numbers)
    return state


def load_random_state(state: dict[str, Any]) -> None:
    """Set back what :func:`save_random_state` returned; CUDA only where the number of devices is the same."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count() and state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, _ints(words), gauss))
    if "numpy" in state:
        import numpy as np  # deferred: torch works without numpy

        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.array(_ints(keys), dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002  # the global state is what users draw from


def _ints(words: Tensor) -> tuple[int, ...]:
    return tuple(words.tolist())
