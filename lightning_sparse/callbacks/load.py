"""Checkpoints of models whose channels were cut, loaded without a Trainer."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch

from lightning_sparse.channels.restore import ShapeFollowing

Module = TypeVar("Module")


def load_from_checkpoint(
    cls: type[Module],
    path: str | PathLike[str],
    *,
    hparams: Mapping[str, Any] | None = None,
    map_location: torch.device | str | None = None,
    strict: bool | None = None,
) -> Module:
    """The LightningModule of a checkpoint, with the channels it had left; as its own ``load_from_checkpoint``.

    Args:
        cls: the LightningModule, as it was written.
        path: of the checkpoint.
        hparams: arguments of ``cls``, where it has not saved them (``save_hyperparameters``) or others are wanted.
        map_location: where its tensors go.
        strict: whether all keys must fit; None leaves that to the module.

    Raises:
        ValueError: if the checkpoint is of a model of other widths.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, barebones=True)
        >>> trainer.fit(BoringModel())
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer.save_checkpoint(f"{folder}/model.ckpt")
        ...     load_from_checkpoint(BoringModel, f"{folder}/model.ckpt").layer
        Linear(in_features=32, out_features=2, bias=True)
    """
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    following: Any = type(cls.__name__, (ShapeFollowing, cls), names)
    given = dict(hparams or {})
    loaded = following.load_from_checkpoint(str(path), map_location=map_location, strict=strict, **given)
    object.__setattr__(loaded, "__class__", cls)
    return loaded  # type: ignore[no-any-return]
