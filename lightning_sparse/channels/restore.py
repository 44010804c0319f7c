"""A model takes the shapes of what is loaded into it: channels that were cut, or that were not cut yet."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparse.channels.attributes import fix
from lightning_sparse.channels.recipe import Recipe, recipe_in
from lightning_sparse.core.select import clean
from lightning_sparse.core.surgery import resize

After = Callable[[], None]
Check = Callable[[nn.Module, Mapping[str, Any], str], "After | None"]
RETURNED = "lightning_sparse.channels"  # beside the weights that come back from another process: a callback's state


@torch.no_grad()
def follow(module: nn.Module, state: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Give every parameter and buffer the shape that it has in a state dict, smaller or larger, in place.

    Nothing else about the model has to be known, and nothing of it is replaced: parameters stay the same objects.
    Where keys differ, or shapes in a way that no cut of channels can explain (another number of dimensions, another
    kernel), nothing is changed, and ``load_state_dict`` then says what does not fit. Values are undefined afterwards:
    they are about to be loaded.

    Args:
        module: whose names, after ``prefix``, are the keys of ``state``.
        state: a state dict; entries that are no tensors are left alone.
        prefix: of its keys.

    Returns:
        The names of what has another shape now.

    Example:
        >>> small = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
        >>> follow(model, small.state_dict())
        ['0.weight', '0.bias', '1.weight']
        >>> _ = model.load_state_dict(small.state_dict())
        >>> model
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    own = dict(saved_tensors(module))
    keys = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if any(name not in keys for name in own):
        return []
    other = {name: state[prefix + name] for name, (tensor, _) in own.items()}
    shapes = {name: tuple(value.shape) for name, value in other.items() if isinstance(value, Tensor)}
    changed = {n: own[n] for n, shape in shapes.items() if shape != tuple(own[n][0].shape)}
    if not changed or not all(_may_be_cut(tensor, shapes[n], owner) for n, (tensor, owner) in changed.items()):
        return []
    names = list(keys - set(own) - {RETURNED})
    if any(not name.endswith("_extra_state") for name in names):
        return []
    old = {clean(name): tuple(tensor.shape) for name, (tensor, _) in changed.items()}
    for name, (tensor, _) in changed.items():
        if tuple(tensor.shape) != shapes[name]:  # else it is tied to one that was done
            tensor.grad = None
            resize(tensor, shapes[name])
    fix(module, list(old), old)
    return list(old)


def saved_tensors(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, nn.Module]]]:
    """What a state dict of the module holds: each tensor under all its names, with the module that owns it."""
    for path, owner in module.named_modules(remove_duplicate=False):
        lasting = {k: v for k, v in owner._buffers.items() if k not in owner._non_persistent_buffers_set}
        for name, tensor in [*owner._parameters.items(), *lasting.items()]:
            if tensor is not None:
                yield f"{path}.{name}" if path else name, (tensor, owner)


def _may_be_cut(tensor: Tensor, shape: tuple[int, ...], owner: nn.Module) -> bool:
    kernel = 2 if isinstance(owner, nn.modules.conv._ConvNd) else len(shape)
    same_kernel = tuple(tensor.shape[kernel:]) == shape[kernel:]
    lazy = isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)
    return not lazy and tensor.ndim == len(shape) and 0 not in shape and same_kernel


class ShapeHook:
    """What a module calls before it loads a state dict, so that it takes the shapes found there.

    Args:
        check: asked first, with module, state dict and prefix; it may refuse with a ValueError, and what it returns is
            called when the shapes are there.
    """

    def __init__(self, check: Check | None = None) -> None:
        self.check = check

    def __call__(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """As torch calls it: module, state dict, prefix, and what is of no use here."""
        after = self.check(module, state, prefix) if self.check else None
        follow(module, state, prefix)
        if after is not None:
            after()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model knows nothing of what its original was asked to check."""
        return {"check": None}


def follow_shapes(module: nn.Module, check: Check | None = None) -> RemovableHandle:
    """See to it that the module takes the shapes of every state dict that is loaded into it, from now on.

    Args:
        module: the outermost one, whose ``load_state_dict`` is called.
        check: see :class:`ShapeHook`.

    Returns:
        A handle whose ``remove()`` ends it.

    Example:
        >>> model = nn.Linear(8, 1)
        >>> handle = follow_shapes(model)
        >>> model.load_state_dict(nn.Linear(5, 1).state_dict()), model.in_features
        (<All keys matched successfully>, 5)
    """
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(ShapeHook(check))  # type: ignore[no-untyped-call]
    return handle


class ShapeFollowing:
    """Put before LightningModule, it lets checkpoints of a model whose channels were cut load without the callback.

    ``load_from_checkpoint``, ``Trainer(strategy="ddp_spawn")``, notebooks and plain ``load_state_dict`` then work; the
    model's code stays what it is.

    Example:
        >>> class Net(ShapeFollowing, nn.Linear):
        ...     pass
        >>> net = Net(8, 1)
        >>> net.load_state_dict(nn.Linear(5, 1).state_dict()), net.in_features
        (<All keys matched successfully>, 5)
    """

    def on_load_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Take the checkpoint's shapes, before Lightning loads its weights.

        Raises:
            ValueError: if it is of another model.
        """
        above = getattr(super(), "on_load_checkpoint", None)
        if above is not None:
            above(checkpoint)
        assert isinstance(self, nn.Module), "ShapeFollowing goes before LightningModule in the list of bases"
        recipe, state = recipe_in(checkpoint), checkpoint["state_dict"]
        if recipe is not None:
            recipe.refuse_other(self, state)
        follow(self, state)
        if recipe is not None:
            recipe.complete(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, after the model has taken the shapes found there."""
        assert isinstance(self, nn.Module), "ShapeFollowing goes before LightningModule in the list of bases"
        follow(self, state_dict)
        if RETURNED in state_dict:
            recipe = Recipe()
            recipe.load_state_dict(state_dict[RETURNED]["channels"])
            recipe.complete(self)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]
