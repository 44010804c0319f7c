"""Activations that modules keep from one run to the next: an axis that one of them has stays whole."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_sparse import slim
from lightning_sparse.channels import analyse

X = torch.linspace(-1, 1, 10).view(2, 5)


class Keeping(nn.Module):
    """Two layers; the first one's output is kept in a way, and read in the next run or not."""

    def __init__(self, way: str, read: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.way, self.read = way, read
        self.state = {"attribute": None, "list": [None], "nested": {"h": (None, 0)}}[way]

    def forward(self, x):
        before = {"attribute": lambda s: s, "list": lambda s: s[0], "nested": lambda s: s["h"][0]}[self.way](self.state)
        now = self.first(x).relu()
        if self.read and before is not None:
            now = now + 0.5 * before
        kept = now.detach() if self.way != "list" else now
        if self.way == "list":
            self.state[0] = kept
        else:
            self.state = kept if self.way == "attribute" else {"h": (kept, 1)}
        return self.head(self.second(now).relu())


def axes(graph):
    return {place.name for atom in graph.atoms for place in atom.places[:1]}


@pytest.mark.parametrize("way", ["attribute", "list", "nested"])
def test_what_the_next_run_reads_stays_whole_and_the_report_says_where_it_is_kept(way):
    model = Keeping(way, read=True)
    graph = analyse(model, lambda: model(X))
    assert axes(graph) == {"second.weight"}
    assert "state of the model is kept from run to run" in graph.frozen["first.weight:0"]


@pytest.mark.parametrize("way", ["attribute", "list", "nested"])
def test_what_is_only_left_behind_for_others_to_look_at_stays_free(way):
    model = Keeping(way, read=False)
    assert axes(analyse(model, lambda: model(X))) == {"first.weight", "second.weight"}


class Cell(nn.Module):
    """As long as nothing was kept, nothing is added."""

    def __init__(self):
        super().__init__()
        self.inner, self.back, self.state = nn.Linear(5, 8), nn.Linear(8, 8, bias=False), None

    def forward(self, x):
        now = self.inner(x) if self.state is None else self.inner(x) + self.back(self.state)
        self.state = torch.tanh(now).detach()
        return torch.tanh(now)


def test_a_recurrent_cell_of_ones_own_runs_on_after_a_cut():
    model = nn.Sequential(Cell(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    report = slim(model, X, 0.5)
    assert model[0].state is None  # as it was
    assert (model[0].inner.out_features, model[1].out_features) == (8, 3)
    assert "state of 0 is kept from run to run" in str(report)
    for _ in range(3):
        assert model(X).shape == (2, 3)


def test_nothing_is_kept_alive_by_looking():
    model = Keeping("attribute", read=True)
    graph = analyse(model, lambda: model(X))
    assert model.state is None
    model(X)
    reference = weakref.ref(model.state)
    analyse(model, lambda: model(X))
    model.state = None
    gc.collect()
    assert reference() is None
    assert graph.atoms
