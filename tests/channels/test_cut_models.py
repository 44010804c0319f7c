"""What people do with a model after it was cut, or had done before."""

import copy
import gc
import io
import weakref

import pytest
import torch
from channels.kinds import conv
from channels.silent import chosen
from channels.zoo import BY_NAME
from torch import nn

from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.channels.trace import Tracer, analyse


def cut(model, x, seed=0):
    graph = probe(model, analyse(model, lambda: model(x)), lambda: model(x))
    stay, _ = chosen(graph, seed)
    shrink(model, graph, stay)
    return graph, stay


def plain():
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.Flatten(), nn.Linear(6 * 64, 2))


PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_channels_last_stays_channels_last():
    kind = BY_NAME["channels_last"]
    model = kind.model()
    cut(model, *kind.inputs())
    for weight in (model.a.weight, model.b.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_a_cut_model_is_copied_and_saved_like_any_other():
    model = plain().eval()
    cut(model, PICTURE)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(model)
    nn.init.zeros_(again[0].weight)
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(again(PICTURE), model(PICTURE))
    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in model.parameters())


def test_hooks_and_the_optimizer_go_on_with_the_same_parameters():
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    seen = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    model(PICTURE).sum().backward()
    optimizer.step()
    graph = probe(model, analyse(model, lambda: model(PICTURE)), lambda: model(PICTURE))
    seen.clear()
    shrink(model, graph, {"0": torch.tensor([1, 2, 5])}, [optimizer])
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    model(PICTURE).sum().backward()
    optimizer.step()
    assert seen == [3, (3, 3, 3, 3)]
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_nothing_of_a_traced_run_is_kept_alive():
    model = plain()
    x = PICTURE.clone()
    tracer = Tracer(model)
    with tracer:
        out = model(x)
    tracer.finish(out)
    output, given = weakref.ref(out), weakref.ref(x)
    graph = tracer.graph()
    del out, x
    assert output() is None  # or the activations of a whole step would be held
    del tracer
    gc.collect()
    assert given() is None
    assert [atom.name for atom in graph.atoms] == ["0", "3"]


def test_a_model_is_cut_down_to_one_channel_and_runs():
    model = plain()
    graph = probe(model, analyse(model, lambda: model(PICTURE)), lambda: model(PICTURE))
    shrink(model, graph, {atom.name: torch.tensor([atom.channels - 1]) for atom in graph.atoms})
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1] == [(1, 3, 3, 3), (1, 1, 3, 3), (2, 64)]
    assert model(PICTURE).shape == (2, 2)
    assert analyse(model, lambda: model(PICTURE)).atoms == ()


@pytest.mark.slow
def test_a_compiled_model_has_the_names_of_the_plain_one_and_is_cut_likewise():
    model, compiled = plain(), plain()
    wrapped = torch.compile(compiled, backend="eager")
    graph = analyse(model, lambda: model(PICTURE))
    seen = analyse(wrapped, lambda: wrapped(PICTURE))
    assert [(atom.name, [place.name for place in atom.places]) for atom in seen.atoms] == [
        (atom.name, [place.name for place in atom.places]) for atom in graph.atoms
    ]
    shrink(wrapped, seen, {"0": torch.arange(5)})
    assert wrapped(PICTURE).shape == (2, 2)
    assert compiled[0].weight.shape[0] == 5


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_layer_keeps_its_shapes_and_what_follows_can_be_cut():
    model = nn.Sequential(torch.jit.script(conv(3, 8)), conv(8, 6), nn.Flatten(), nn.Linear(6 * 64, 2))
    graph, _ = cut(model, PICTURE)
    assert [atom.name for atom in graph.atoms] == ["1"]
    assert "TorchScript" in graph.frozen["0.weight:0"]
    assert model(PICTURE).shape == (2, 2)


def test_weights_that_share_memory_but_are_not_the_same_parameter_still_share_it():
    words, head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
    head.weight.data = words.weight.data
    model = nn.Sequential(words, nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8), head)
    graph, _ = cut(model, torch.arange(6).view(2, 3))
    assert [atom.name for atom in graph.atoms] == ["1"]
    assert "memory" in graph.frozen["0.weight:1"]
    assert words.weight.data_ptr() == head.weight.data_ptr()
