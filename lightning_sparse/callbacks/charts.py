"""Pictures, histograms and charts, for loggers that can show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_sparse.callbacks.base import rank_zero_only
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.pictures import density_picture, mask_picture

_PICTURES = 16  # layers that get a mask picture: a deep network would flood the page


def show_masks(
    trainer: Any, params: Mapping[str, SparseParam], densities: Sequence[Sequence[float]], step: int
) -> None:
    """A picture of each mask, and one of the layers' densities over updates."""
    pictures = {f"masks/{name}": mask_picture(p.mask) for name, p in list(params.items())[:_PICTURES]}
    pictures["masks/density over updates"] = density_picture(densities)
    for key, picture in pictures.items():
        for experiment in _experiments(trainer, "add_image"):
            experiment.add_image(key, picture, step, dataformats="HW")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image") and not hasattr(logger.experiment, "add_image"):
                rank_zero_only(logger.log_image)(key, [picture.numpy()], step=step)


def show_weights(trainer: Any, params: Mapping[str, SparseParam], step: int) -> None:
    """A histogram of the live weights of each layer."""
    for name, p in params.items():
        live = p.weight[p.mask]  # on every rank, whatever its loggers can do: ranks that share weights meet here
        for experiment in _experiments(trainer, "add_histogram"):
            experiment.add_histogram(f"weights/{name}", live, step)


def add_layout(trainer: Any) -> None:
    """One TensorBoard chart of all layers' densities, and one of their non-zero shares."""
    charts = {"density per layer": ["Multiline", ["density/.*"]], "non-zero per layer": ["Multiline", ["nonzero/.*"]]}
    for experiment in _experiments(trainer, "add_custom_scalars"):
        experiment.add_custom_scalars({"sparsity": charts})


def _experiments(trainer: Any, method: str) -> list[Any]:
    """What loggers write to, where it can do ``method``; on other ranks it is a dummy that swallows everything."""
    return [logger.experiment for logger in trainer.loggers if hasattr(logger.experiment, method)]
