"""What must come after all other callbacks: forward passes are next."""

from typing import TYPE_CHECKING, Any

from lightning_sparse.callbacks.base import Callback

if TYPE_CHECKING:
    from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse


class Late(Callback):
    """The other half of a QuantizeSparse, last in the Trainer's list but for what saves checkpoints.

    Others draw weights, cut channels or swap averages in when a batch starts: what they leave is quantized.

    Args:
        first: the callback, which stands first in the list.
    """

    def __init__(self, first: "QuantizeSparse") -> None:
        self.first = first

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Model, optimizers, masks and shapes are in place."""
        self.first.fit_starts(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A training step comes."""
        self.first.batch_starts(trainer)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """A validation step comes, of an average perhaps."""
        self.first.open()

    def on_test_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """A test step comes."""
        self.first.open()

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """A prediction comes."""
        self.first.open()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The weights are final."""
        self.first.fit_ends(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Also where nothing was left to train."""
        self.first.fit_is_over(trainer, pl_module)


def take_places(trainer: Any, first: "QuantizeSparse") -> None:
    """Put the callback first, and its other half last, in the Trainer's list."""
    late = next((c for c in trainer.callbacks if isinstance(c, Late) and c.first is first), None) or Late(first)
    savers = trainer.checkpoint_callbacks
    others = [c for c in trainer.callbacks if c is not first and c is not late and c not in savers]
    trainer.callbacks = [first, *others, late, *savers]  # a new list: Lightning walks the old one
