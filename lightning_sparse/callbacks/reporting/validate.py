"""Copies of a LightningModule are validated on the CPU, by a Trainer of their own."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_sparse.callbacks.base import Callback
from lightning_sparse.callbacks.reporting.parts import chosen, with_part
from lightning_sparse.export.extras import hushed

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


class Validator:
    """What a model is worth, by the ``validation_step`` of its LightningModule.

    Args:
        module: the LightningModule; it is copied where only a part of it is validated.
        part: the name of what varies in it; "" for all of it.
        data: how ``Trainer.validate`` finds batches: ``dataloaders=`` or ``datamodule=``; empty for the module's own.
        metric: what is wanted of what is logged; None for what suggests itself, see :func:`chosen`.
        monitored: names that suggest themselves first.
        limit: ``limit_val_batches``.

    Attributes:
        metric: by name, once a model was validated.
        first: the first batch that came.
    """

    def __init__(
        self,
        module: nn.Module,
        part: str,
        data: Mapping[str, Any],
        *,
        metric: str | None = None,
        monitored: tuple[str, ...] = (),
        limit: int | float | None = None,
    ) -> None:
        self.module, self.part, self.data, self.limit = module, part, dict(data), limit
        self.metric, self.monitored = metric, monitored
        self.first: Any = None

    def __call__(self, model: nn.Module) -> float:
        """The metric, of a model in the place of the part.

        Raises:
            ValueError: if no such metric is logged.
        """
        values = self.values(model)
        self.metric = chosen(values, self.metric, self.monitored) or next(iter(values), None)
        if self.metric is None:
            raise ValueError("nothing is logged in validation")
        return float(values[self.metric])

    def values(self, model: nn.Module) -> dict[str, float]:
        """All that is logged, with a model in the place of the part."""
        return self.run(with_part(self.module, self.part, model), self.limit)

    def run(self, whole: nn.Module, limit: int | float | None) -> dict[str, float]:
        """All that a LightningModule logs in validation, on so many batches; it keeps the Trainer's traces."""
        first = _First()
        with hushed(*_LOGGERS):  # a second Trainer says nothing of devices and workers
            trainer = _trainer_class(self.module)(
                accelerator="cpu",
                devices=1,
                logger=False,
                callbacks=[first],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=limit,
            )
            results = trainer.validate(whole, verbose=False, **self.data)
        self.first = first.batch
        return {name: value for found in results for name, value in found.items()}


class _First(Callback):
    """Keeps the first batch."""

    def __init__(self) -> None:
        self.batch: Any = None

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called by Lightning."""
        if batch_idx == 0 and dataloader_idx == 0:
            self.batch = batch


def _trainer_class(module: nn.Module) -> Any:
    """Of the package that the LightningModule is from."""
    bases = [kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule"]
    if bases and bases[0].__module__.startswith("pytorch_lightning"):
        import pytorch_lightning

        return pytorch_lightning.Trainer
    import lightning.pytorch

    return lightning.pytorch.Trainer
