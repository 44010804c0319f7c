"""An update of the masks that waits for a gradient must not wait for ever unnoticed."""

import warnings
from collections.abc import Sequence

from lightning_sparse.core.param import SparseParam

_PATIENCE = 25  # optimizer steps


class Patience:
    """Warns once when an update has been overdue for 25 steps.

    Example:
        >>> patience = Patience()
        >>> for step in range(1, 25):
        ...     patience.look(True, step, [])
        >>> patience.look(False, 25, [])
    """

    def __init__(self) -> None:
        self._waited = 0

    def look(self, overdue: bool, step: int, params: Sequence[SparseParam]) -> None:
        """An update was due after ``step``; ``overdue`` says that no finite gradient was there for it."""
        self._waited = self._waited + 1 if overdue else 0
        if self._waited == _PATIENCE:
            without = [p.name for p in params if p.dense_grad is None]
            lacking = f"no gradient comes for {', '.join(without)}" if len(without) == len(params) else ""
            why = lacking or "gradients are not finite: has the run diverged?"
            text = f"masks were to move after step {step - _PATIENCE + 1}, and still wait at step {step}: {why}"
            warnings.warn(text, stacklevel=2)
