"""Where activations are quantized: what goes into quantized layers, and what comes out of convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lightning_sparse.channels.dispatch import Watch
from lightning_sparse.channels.quiet import evaluating, plain_paths
from lightning_sparse.core.select import CONVS, TRANSPOSED, modules_of
from lightning_sparse.quant.quantization import Layer

# Values that lie on a grid lie on it afterwards too.
_VIEWS = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze"}
_PARTS = {"unsqueeze", "expand", "repeat", "slice", "select", "index_select", "split", "split_with_sizes", "unbind"}
_COPIES = {"clone", "contiguous", "alias", "detach", "_to_copy", "lift_fresh"}
_SHUFFLES = {"chunk", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle"}
_LARGEST = {"max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices"}
_KEEP = _VIEWS | _PARTS | _COPIES | _SHUFFLES | _LARGEST | {"relu", "relu_", "hardtanh", "hardtanh_"}
_Label = tuple[str, str]  # a layer, and "raw" for what it returns, "norm" for what its norm does, "in" for what it got


def find(
    model: nn.Module, run: Callable[[], Any], bits: Mapping[str, int], *, activations: bool = True
) -> dict[str, Layer]:
    """The layers among those asked for that are really called, with the places of their activations.

    One run in evaluation mode is watched, below autograd. Afterwards the model is as it was.

    Args:
        model: any module.
        run: runs it.
        bits: of the weights, by module name: Linear layers and convolutions. What is not called is not in the answer.
        activations: whether these are quantized too.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> found = find(net, lambda: net(torch.zeros(1, 1, 4, 4)), {"0": 8, "4": 4})
        >>> found["0"]
        Layer(module='0', bits=8, norm='1', clip=(0.0, None), input='0:in', output='0:out')
        >>> found["4"]
        Layer(module='4', bits=4, norm=None, clip=None, input='0:out', output=None)
    """
    paths = _Paths(model, bits)
    with evaluating(model), plain_paths(), Watch(paths.see):
        run()
    paths.close()
    layers = {name: Layer(name, bits[name], norm=paths.folded(name)) for name in bits if paths.calls.get(name)}
    if not activations:
        return layers
    return {name: paths.placed(name, layers) for name in layers}


class _Paths:
    """Follows what layers return: who uses it, and where it arrives unchanged."""

    def __init__(self, model: nn.Module, layers: Mapping[str, int]) -> None:
        self.modules = modules_of(model)
        self.calls: dict[str, int] = {}
        self._inputs: dict[str, list[_Label | None]] = {}
        self._uses: dict[_Label, list[tuple[str, str]]] = {}  # operation and norm in which it happened
        self._clips: dict[_Label, set[tuple[float, float | None]]] = {}
        self._norms: dict[str, list[str | None]] = {}  # whose output each norm was given, "" inside the model's code
        self._labels: dict[int, tuple[Tensor, _Label]] = {}  # held, so that ids stay theirs
        self._fresh: dict[int, _Label] = {}  # as the layer or norm returned them
        self._inside = ""
        self._handles = [
            hook
            for name, module in self.modules.items()
            if name in layers or isinstance(module, _BatchNorm)
            for hook in self._hooks(name, module, name in layers)
        ]

    def close(self) -> None:
        """Take the hooks off and let go of the tensors."""
        for handle in self._handles:
            handle.remove()
        self._labels, self._fresh = {}, {}

    def folded(self, name: str) -> str | None:
        """The BatchNorm that alone uses what a convolution or Linear layer returns, each time."""
        uses = self._uses.get((name, "raw"), [])
        norms = {norm for _, norm in uses}
        if len(norms) != 1 or "" in norms or len(uses) != self.calls[name]:
            return None
        (norm,) = norms
        module = self.modules[norm]
        tracked = isinstance(module, _BatchNorm) and module.running_mean is not None
        return norm if tracked and self._norms[norm] == [name] * self.calls[name] else None

    def placed(self, name: str, layers: Mapping[str, Layer]) -> Layer:
        """The layer with its places."""
        layer, found = layers[name], set(self._inputs[name])
        (first, *others) = found
        site = None if others or first is None else self._site(first, layers)
        output = f"{name}:out" if self._is_conv(name) else None
        clip = self._clip((name, "norm" if layer.norm else "raw")) if output else None
        return Layer(name, layer.bits, layer.norm, clip, site or f"{name}:in", output)

    def _site(self, label: _Label, layers: Mapping[str, Layer]) -> str | None:
        name, kind = label
        if kind == "in":
            return f"{name}:in"
        ends = "norm" if layers[name].norm else "raw"
        return f"{name}:out" if kind == ends and self._is_conv(name) else None

    def _clip(self, label: _Label) -> tuple[float, float | None] | None:
        clips, uses = self._clips.get(label, set()), self._uses.get(label, [])
        bounded = all(op.rstrip("_") in ("relu", "hardtanh") for op, _ in uses)
        return next(iter(clips)) if uses and bounded and len(clips) == 1 else None

    def _is_conv(self, name: str) -> bool:
        return isinstance(self.modules[name], CONVS + TRANSPOSED)

    def _hooks(self, name: str, module: nn.Module, layer: bool) -> list[Any]:
        def enter(module: nn.Module, args: Sequence[Any]) -> None:
            label = self._labels[id(args[0])][1] if args and id(args[0]) in self._labels else None
            if layer:
                self.calls[name] = self.calls.get(name, 0) + 1
                if label is None and args and isinstance(args[0], Tensor):
                    label = name, "in"  # another layer that gets the very same tensor shares the place
                    self._labels[id(args[0])] = args[0], label
                self._inputs.setdefault(name, []).append(label)
            else:
                self._inside = name
                raw = args and self._fresh.get(id(args[0])) == label and label is not None and label[1] == "raw"
                self._norms.setdefault(name, []).append(label[0] if raw and label else None)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._inside = ""
            if not isinstance(output, Tensor):
                return
            if layer:
                self._put(output, (name, "raw"))
            elif (source := self._norms[name][-1]) is not None:
                self._put(output, (source, "norm"))

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _put(self, tensor: Tensor, label: _Label) -> None:
        self._labels[id(tensor)] = tensor, label
        self._fresh[id(tensor)] = label

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and note what it uses and what it lets through."""
        result = func(*args, **kwargs)
        name = func.__name__.partition(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            if (label := self._fresh.get(id(tensor))) is not None:
                self._uses.setdefault(label, []).append((name, self._inside))
                if (clip := _bounds(name, args)) is not None:
                    self._clips.setdefault(label, set()).add(clip)
        first = self._labels.get(id(given[0])) if given else None
        if name.endswith("_") and given:
            self._fresh.pop(id(given[0]), None)
            if name not in _KEEP:
                self._labels.pop(id(given[0]), None)
        elif name in _KEEP and first is not None:
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            for tensor in outputs:
                self._labels[id(tensor)] = tensor, first[1]
        return result


def _bounds(name: str, args: Sequence[Any]) -> tuple[float, float | None] | None:
    """What an activation function clips to; it must let 0 through as 0."""
    if name.rstrip("_") == "relu":
        return 0.0, None
    if name.rstrip("_") == "hardtanh":
        low, high = (args[1], args[2]) if len(args) > 2 else (-1.0, 1.0)
        return (float(low), float(high)) if low <= 0 <= high else None
    return None
