"""Channels of other people's architectures: found, silent ones cut without a difference, all of them cut and run."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from channels.silent import State, agree, chosen, far, owned, produced, silence
from modules.architectures import ARCHITECTURES

from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.channels.trace import analyse

pytestmark = [
    pytest.mark.modules,
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
    pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name),
]


@cache
def found(architecture):
    model = architecture.kind().model().train()
    before = State.of(model)
    run = architecture.run(model)
    graph = probe(model, analyse(model, run), run)
    return graph, before.same(model)


def answer(architecture, model):
    with torch.no_grad():
        return architecture.run(model.eval())()


def test_the_axes_are_found_and_the_model_is_left_as_it_was(architecture):
    graph, untouched = found(architecture)
    assert untouched
    free = {f"{place.name}:{place.dim}": atom.channels for atom in graph.atoms for place in atom.places}
    assert {axis: free.get(axis) for axis in architecture.free} == architecture.free
    assert len(graph.atoms) == architecture.atoms


def test_silent_channels_are_cut_without_a_difference_and_others_are_not(architecture):
    graph, _ = found(architecture)
    kind = architecture.kind()
    stay, gone = chosen(graph, 0, {atom.name for atom in graph.atoms if not atom.lossy})
    quiet, cut, wrong = (kind.model() for _ in range(3))
    for model in (quiet, cut, wrong):
        silence(model, kind, owned(graph, gone))
    shrink(cut, graph, stay)
    expected = answer(architecture, quiet)
    assert far(answer(architecture, cut), expected) < 1e-5

    makers = produced(wrong, kind)
    atoms = []
    for atom in graph.atoms:
        maker = next((place for place in atom.places if f"{place.name}:{place.dim}" in makers), None)
        moved = replace(maker, index=maker.index.roll(1, 0))
        atoms.append(replace(atom, places=tuple(moved if place is maker else place for place in atom.places)))
    shrink(wrong, replace(graph, atoms=tuple(atoms)), stay)
    assert far(answer(architecture, wrong), expected) > 1e-3


def test_a_model_cut_everywhere_runs_on_with_outputs_of_the_same_shapes(architecture):
    graph, _ = found(architecture)
    kind = architecture.kind()
    whole, cut = kind.model(), kind.model()
    stay, _ = chosen(graph, 1)
    assert len(stay) >= 3
    shrink(cut, graph, stay)
    assert far(answer(architecture, cut), answer(architecture, whole)) < float("inf")
    assert agree(cut) == []
