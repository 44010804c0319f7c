"""Every kind of model in the zoo: what can be cut is found, and cutting silent channels changes nothing."""

import copy
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from channels.silent import State, agree, chosen, far, leaves, owned, produced, silence, sliced, tensors
from channels.zoo import ZOO

from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.shrink import mask, shrink
from lightning_sparse.channels.trace import Tracer, analyse

CLOSE = 1e-5
every = pytest.mark.parametrize(
    "kind", [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.slow else []) for one in ZOO]
)


def runner(model, kind):
    return lambda: model(*kind.inputs())


@dataclass(frozen=True)
class Found:
    """What was found out about a model in mixed modes with gradients, and whether that left it as it was."""

    seen: Graph
    graph: Graph
    untouched: bool


@cache
def explored(kind):
    """Graphs hold names and indices only, so tests share them."""
    model = kind.model().train()
    loss(model(*kind.inputs())).backward()
    for i, module in enumerate(model.modules()):
        module.training = bool(i % 3)
    before, drawn = State.of(model), torch.get_rng_state()
    seen = analyse(model, runner(model, kind))
    graph = probe(model, seen, runner(model, kind))
    return Found(seen, graph, before.same(model) and torch.equal(torch.get_rng_state(), drawn))


def found(kind):
    return explored(kind).graph


def loss(output):
    return sum(leaf.float().pow(2).mean() for leaf in leaves(output))


def lossless(kind, graph):
    return {atom.name for atom in graph.atoms if not atom.lossy}


def axes(atom):
    return {f"{place.name}:{place.dim}" for place in atom.places}


def listed(graph):
    return [(atom.name, axes(atom), atom.channels) for atom in graph.atoms]


def answers(model, kind):
    model.eval()
    with torch.no_grad():
        return model(*kind.inputs())


def pair(kind, graph, gone, stay, wrong=None):
    """Outputs of a model whose channels are silent, and of one whose channels are cut."""
    quiet, cut = kind.model(), kind.model()
    for model in (quiet, cut):
        silence(model, kind, owned(graph, gone))
    shrink(cut, wrong or graph, stay)
    return answers(quiet, kind), answers(cut, kind)


@every
def test_the_atoms_are_those_that_the_model_has_and_the_rest_has_a_reason(kind):
    graph, model = found(kind), kind.model()
    of = {axis: atom for atom in graph.atoms for axis in axes(atom)}
    assert {axis: of[axis].channels if axis in of else 0 for axis in kind.atoms} == kind.atoms
    assert len({of[axis].name for axis in kind.atoms}) == len(kind.atoms) == len(graph.atoms)
    assert len({atom.name for atom in graph.atoms}) == len(graph.atoms)
    assert {axis for axis in kind.atoms if of[axis].lossy} == kind.lossy
    made = {axis: axis in of for axis, layer in produced(model, kind).items() if layer not in kind.ends}
    expected = "frozen" if not graph.atoms else "full" if all(made.values()) else "partly"
    assert expected == kind.expected, made
    assert set(of).isdisjoint(graph.frozen)
    assert set(produced(model, kind)) <= set(of) | {axis for axis, reason in graph.frozen.items() if reason}


@every
def test_cutting_silent_channels_of_all_axes_or_of_any_one_changes_nothing(kind):
    graph = found(kind)
    names = lossless(kind, graph)
    for name in [names, *({name} for name in sorted(names))]:
        stay, gone = chosen(graph, 3 + len(name), name)
        if stay:
            quiet, cut = pair(kind, graph, gone, stay)
            assert far(cut, quiet) < CLOSE, name


@every
def test_a_masked_model_answers_as_the_cut_one_whatever_was_in_the_channels(kind):
    graph = found(kind)
    stay, _ = chosen(graph, 8, lossless(kind, graph))
    masked, cut = kind.model(), kind.model()
    mask(masked, graph, stay)
    shrink(cut, graph, stay)
    assert far(answers(cut, kind), answers(masked, kind)) < CLOSE
    whole = tensors(kind.model())
    assert all(tensor.shape == whole[name].shape for name, tensor in tensors(masked).items())


@every
def test_another_channel_in_one_tensor_would_be_noticed(kind):
    """The negative control: what makes an axis is cut one place further than all else that shares it."""
    graph = found(kind)
    makers = produced(kind.model(), kind)
    for atom in graph.atoms:
        maker = next((place for place in atom.places if f"{place.name}:{place.dim}" in makers), None)
        if atom.lossy or atom.channels < 3 or maker is None:
            continue
        shifted = replace(maker, index=maker.index.roll(1, 0))
        places = tuple(shifted if place is maker else place for place in atom.places)
        wrong = replace(graph, atoms=tuple(replace(a, places=places) if a is atom else a for a in graph.atoms))
        differences = []
        for seed in range(20):  # where neighbours are dead behind a relu it makes no difference
            stay, gone = chosen(graph, seed, {atom.name})
            quiet, cut = pair(kind, graph, gone, stay, wrong)
            differences.append(far(cut, quiet))
            if differences[-1] > 10 * CLOSE:
                break
        assert max(differences) > 10 * CLOSE, atom.name


@every
def test_what_is_left_are_the_kept_slices_of_the_same_tensors_and_attributes_agree(kind):
    graph = found(kind)
    model = kind.model()
    before, identity = copy.deepcopy(tensors(model)), {name: id(tensor) for name, tensor in tensors(model).items()}
    stay, gone = chosen(graph, 6)
    lie = owned(graph, gone)
    shapes = [tuple(tensor.shape) for tensor in map(torch.as_tensor, tensors(model).values())]
    shrink(model, graph, stay)
    after = tensors(model)
    assert {name: id(tensor) for name, tensor in after.items()} == identity
    for name, tensor in before.items():
        assert torch.equal(after[name], sliced(tensor, lie.get(name, {}))), name
        assert after[name].requires_grad == tensor.requires_grad
    assert agree(model) == []
    assert (shapes == [tuple(tensor.shape) for tensor in after.values()]) == (not stay)


@every
@pytest.mark.parametrize("probed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_cut_model_trains_on_and_is_analysed_again_with_fewer_channels(kind, probed):
    graph = found(kind)
    model = kind.model()
    whole = answers(model, kind)
    stay, _ = chosen(graph, 7)
    shrink(model, graph, stay)
    cut = answers(model, kind)
    assert far(cut, whole) < float("inf")  # the same shapes
    expected = [(atom.name, axes(atom), len(stay.get(atom.name, range(atom.channels)))) for atom in graph.atoms]
    again = analyse(model, runner(model, kind))
    if probed or listed(again) != expected:  # what only a probe finds, it finds again
        again = probe(model, again, runner(model, kind))
        # of two channels the values decide; where a rule says that they change, they need not prove anything
        known = {atom.name for atom in explored(kind).seen.atoms if atom.lossy}
        lossy = {atom.name for atom in graph.atoms if atom.lossy}
        expected = [one for one in expected if one[2] > 2 or one[0] in known or one[0] not in lossy]
    assert listed(again) == expected
    stayed = {name for name, _, _ in expected}
    changing = [atom.lossy for atom in graph.atoms if atom.name in stayed]
    assert [atom.lossy for atom in again.atoms] == changing or not probed
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss(model(*kind.inputs())).backward()
    optimizer.step()


@every
def test_analysing_and_probing_leave_no_trace(kind):
    assert explored(kind).untouched


@every
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_live_training_step_shows_the_same_atoms_as_evaluation(kind, precision):
    model, quiet = kind.model().train(), explored(kind).seen
    tracer = Tracer(model)
    tracer.open()
    mixed = precision == "bfloat16" and kind.name != "bilinear_layer"  # which gets tensors of two types then
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        value = loss(model(*kind.inputs()))
    tracer.finish(value)
    tracer.close()
    value.backward()
    live = tracer.graph()
    assert listed(live) == listed(quiet)
    for one, other in zip(live.atoms, quiet.atoms, strict=True):
        assert all(torch.equal(a.index, b.index) for a, b in zip(one.places, other.places, strict=True))
