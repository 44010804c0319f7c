"""Checkpoints, also of models whose channels were cut, loaded without a Trainer."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_sparse.channels.recipe import Recipe, recipe_in
from lightning_sparse.channels.restore import ShapeFollowing, follow

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


def take_checkpoint(module: nn.Module, checkpoint: Mapping[str, Any], own: Recipe | None = None) -> None:
    """Load a Lightning checkpoint into a LightningModule that exists, with the channels that it has left.

    Args:
        module: takes its weights and shapes.
        checkpoint: as ``torch.load`` returns it.
        own: what has been cut out of ``module``; None for nothing.

    Raises:
        ValueError: if it is of a model of other widths, or none at all.
        RuntimeError: if keys or shapes do not fit, as ``load_state_dict`` says.

    Example:
        >>> small, model = torch.nn.Linear(3, 1), torch.nn.Linear(5, 1)
        >>> take_checkpoint(model, {"state_dict": small.state_dict()})
        >>> model.in_features, torch.equal(model.weight, small.weight)
        (3, True)
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(
            f"this is no Lightning checkpoint: it has no state_dict, but {', '.join(map(str, checkpoint))}"
        )
    recipe = recipe_in(checkpoint) or (None if own is None else Recipe())
    if recipe is not None:
        recipe.refuse_other(module, state, own)
    if callable(hook := getattr(module, "on_load_checkpoint", None)):
        hook(checkpoint)
    follow(module, state)
    if recipe is not None:
        recipe.complete(module, own)
    module.load_state_dict(state, strict=bool(getattr(module, "strict_loading", True)))


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """A Lightning checkpoint, on the CPU; nothing in it is executed.

    Raises:
        ValueError: if it cannot be read, with the way out.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError(
            f"{path} holds objects that only code can load, or is no checkpoint; save hyper-parameters as plain values "
            f"({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise ValueError(f"{path} is no Lightning checkpoint: it holds no state_dict")
    return found
