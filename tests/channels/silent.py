"""What the engine is judged by, written without it: which axes layers produce, and channels made silent by hand."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from channels.kinds import Kind
from torch import Tensor, nn

Axes = Mapping[str, Mapping[int, Tensor]]  # tensor -> dim -> indices


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def produced(model: nn.Module, kind: Kind) -> dict[str, str]:
    """Axes along which weights of layers make channels, as "tensor:dim", each with its layer."""
    axes, own = {axis: axis.rpartition(":")[0].rpartition(".")[0] or axis for axis in kind.produces}, tensors(model)
    for name, module in model.named_modules():
        for own_name, weight in module.named_parameters(recurse=False):
            if "weight" not in own_name or weight.dim() < 2 or "parametrizations" in name:
                continue
            turned = isinstance(module, nn.Embedding | nn.EmbeddingBag) or type(module).__name__ == "Conv1D"
            turned |= isinstance(module, nn.ConvTranspose2d) and weight.shape[1] > 1
            full = f"{name}.{own_name}".lstrip(".")
            if weight.shape[int(turned)] > 1 and full in own:
                axes[f"{full}:{int(turned)}"] = name
    return axes


def owned(graph, gone: Mapping[str, Tensor]) -> Axes:
    """Where the channels ``gone`` of each atom lie."""
    found: dict[str, dict[int, Tensor]] = {}
    for atom in graph.atoms:
        for place in atom.places if atom.name in gone else ():
            own = found.setdefault(place.name, {})
            more = place.index[gone[atom.name]].flatten()
            own[place.dim] = torch.cat([own[place.dim], more]).unique() if place.dim in own else more.unique()
    return found


@torch.no_grad()
def silence(model: nn.Module, kind: Kind, lie: Axes) -> None:
    """Zero what makes channels: their rows of weights, biases, gains and shifts, and running means.

    Columns of what reads them stay as they are, unless ``kind.consumers`` says that zeros do not arrive there.
    """
    makers = produced(model, kind)
    for name, tensor in tensors(model).items():
        for dim, index in lie.get(name, {}).items():
            vector = tensor.dim() == 1 and not name.endswith("running_var")
            if vector or f"{name}:{dim}" in makers or (kind.consumers and tensor.dim() > 1):
                tensor.index_fill_(dim, index, 0)


def chosen(graph, seed: int, names=None, share: float = 0.5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Channels that stay and that go, at random; at least two stay, and one goes where there are three."""
    generator = torch.Generator().manual_seed(seed)
    stay, gone = {}, {}
    for atom in graph.atoms:
        order = torch.randperm(atom.channels, generator=generator)
        keep = min(atom.channels - 1, max(2, round(atom.channels * share)))
        if (names is None or atom.name in names) and keep > 1:
            stay[atom.name], gone[atom.name] = order[:keep].sort().values, order[keep:].sort().values
    return stay, gone


def sliced(tensor: Tensor, lie: Mapping[int, Tensor]) -> Tensor:
    """What is left of a tensor, by lists and loops."""
    for dim, index in lie.items():
        out = set(index.tolist())
        tensor = torch.stack([one for i, one in enumerate(tensor.unbind(dim)) if i not in out], dim)
    return tensor


def leaves(output) -> list[Tensor]:
    """Every tensor in an output, whatever it is packed in."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return [tensor for one in output for tensor in leaves(one)]
    if isinstance(output, dict):
        return leaves(list(output.values()))
    return leaves(list(vars(output).values())) if hasattr(output, "__dict__") else []


def far(one, other) -> float:
    """Largest difference between two outputs, relative to the largest value; inf where shapes differ, or at a NaN."""
    one, other = leaves(one), leaves(other)
    if [tuple(tensor.shape) for tensor in one] != [tuple(tensor.shape) for tensor in other]:
        return float("inf")
    apart = [(a - b).abs().max() / (b.abs().max() + 1e-12) for a, b in zip(one, other, strict=True)]
    return float(torch.stack(apart).nan_to_num(float("inf")).max())


def numbers(module: nn.Module) -> dict[str, str]:
    """Attributes that sizes may be kept in."""
    return {key: repr(value) for key, value in vars(module).items() if isinstance(value, int | float | tuple | list)}


@dataclass(frozen=True)
class State:
    """All of a model that a failed cut must leave as it was."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    pointers: dict[str, tuple[int, int]]
    attributes: dict[str, dict[str, str]]
    modes: dict[str, bool]

    @classmethod
    def of(cls, model: nn.Module) -> "State":
        held = tensors(model)
        return cls(
            {name: tensor.detach().clone() for name, tensor in held.items()},
            {name: None if tensor.grad is None else tensor.grad.to_dense().clone() for name, tensor in held.items()},
            {name: (id(tensor), tensor.data_ptr()) for name, tensor in held.items()},
            {name: numbers(module) for name, module in model.named_modules()},
            {name: module.training for name, module in model.named_modules()},
        )

    def same(self, model: nn.Module) -> bool:
        now = State.of(model)

        def equal(one, other):
            return (one is None) == (other is None) and (one is None or torch.equal(one, other))

        return (
            (self.pointers, self.attributes, self.modes) == (now.pointers, now.attributes, now.modes)
            and all(equal(tensor, now.values[name]) for name, tensor in self.values.items())
            and all(equal(tensor, now.gradients[name]) for name, tensor in self.gradients.items())
        )


def agree(model: nn.Module) -> list[str]:
    """Layers whose attributes contradict the shapes of their weights."""
    wrong = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        shape = tuple(weight.shape)
        if isinstance(module, nn.modules.conv._ConvNd):
            ends = (module.out_channels, module.in_channels)
            first, second = reversed(ends) if module.transposed else ends
            right = shape[:2] == (first, second // module.groups)
        elif isinstance(module, nn.Linear):
            right = shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Bilinear):
            right = shape == (module.out_features, module.in1_features, module.in2_features)
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            right = shape == (module.num_embeddings, module.embedding_dim)
        elif hasattr(module, "num_features"):
            right = shape == (module.num_features,)
        elif isinstance(module, nn.LayerNorm):
            right = shape == tuple(module.normalized_shape)
        elif isinstance(module, nn.GroupNorm):
            right = shape == (module.num_channels,)
        elif isinstance(module, nn.PReLU):
            right = shape == (module.num_parameters,)
        else:
            right = True
        if not right:
            wrong.append(f"{name}: {module} with {shape}")
    return wrong
