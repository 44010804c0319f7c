"""Where torch-pruning runs (Fang et al. 2023, https://arxiv.org/abs/2301.12900) it finds the same channels together."""

import pytest
from channels.zoo import ZOO
from torch import nn

from lightning_sparse.channels.trace import analyse

tp = pytest.importorskip("torch_pruning")

LAYERS = nn.modules.conv._ConvNd | nn.Linear | nn.modules.batchnorm._BatchNorm


def made(layer, outputs):
    """Tensors and dimensions that a layer loses with an output or an input channel."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return [(name, 0) for name in ("weight", "bias", "running_mean", "running_var")]
    dim = int(outputs == getattr(layer, "transposed", False))
    return [("weight", dim), ("bias", 0)] if outputs else [("weight", dim)]


def theirs(model, inputs, layer):
    """Per output channel of a layer: all (tensor, dim, index) that go with it."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    names = {module: name for name, module in model.named_modules()}
    prune = graph.get_pruner_of_module(layer).prune_out_channels
    for channel in range(graph.get_pruner_of_module(layer).get_out_channels(layer)):
        lost = set()
        for dependency, indices in graph.get_pruning_group(layer, prune, [channel]):
            module = dependency.target.module
            if not isinstance(module, LAYERS):
                continue
            for name, dim in made(module, graph.is_out_channel_pruning_fn(dependency.handler)):
                if getattr(module, name, None) is None:
                    continue
                size = getattr(module, name).shape[dim]
                lost |= {(f"{names[module]}.{name}", dim, index) for index in indices if size > 1}
        yield frozenset(lost)


def ours(model, inputs):
    """The same of every channel of every atom."""
    known = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}
    for atom in analyse(model, lambda: model(*inputs)).atoms:
        for channel in range(atom.channels):
            yield frozenset(
                (place.name, place.dim, int(index))
                for place in atom.places
                if place.name.rpartition(".")[0] in known
                for index in place.index[channel]
            )


def widened(lost, model):
    """Their indices of a grouped convolution's inputs count all channels; a weight has those of one group."""
    shapes = {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return frozenset((name, dim, index % shapes[name][dim]) for name, dim, index in lost)


@pytest.mark.parametrize("kind", [one for one in ZOO if one.oracle], ids=lambda one: one.name)
def test_the_same_channels_belong_together(kind):
    model = kind.model().eval()
    own = set(ours(model, kind.inputs()))
    assert own
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and name not in kind.ends:
            groups = {widened(lost, model) for lost in theirs(model, kind.inputs(), layer)}
            assert groups
            assert groups <= own, name
