"""An operation without a rule freezes what it touches and is named; what it does not touch can still be cut."""

import pytest
import torch
from channels.kinds import Net, conv, pooled
from torch import nn

from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.trace import analyse


@pytest.fixture(scope="module", autouse=True)
def strange():
    """Operations that no rule can know."""
    library = torch.library.Library("zoo", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.define("upset_(Tensor(a!) x) -> ()")
    library.define("pair(Tensor x, Tensor[] others) -> (Tensor, Tensor[])")
    library.impl("mystery", lambda x: x.clone(), "CPU")
    library.impl("upset_", lambda x: None, "CPU")
    library.impl("pair", lambda x, others: (x.clone(), [other.clone() for other in others]), "CPU")
    yield
    library._destroy()


def net(between):
    def run(m, x):
        x = torch.relu(m.a(x))
        x = between(torch.relu(m.inner.b(x)))
        return m.head(pooled(torch.relu(m.c(x))))

    return Net(run, a=conv(3, 5), inner=Net(None, b=conv(5, 6)), c=conv(6, 7), head=nn.Linear(7, 2))


def upset(x):
    torch.ops.zoo.upset_(x)
    return x


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda x: torch.ops.zoo.mystery(x), "zoo.mystery"),
        (upset, "zoo.upset_"),
        (lambda x: torch.ops.zoo.pair(x, [x])[0], "zoo.pair"),
        (lambda x: torch.ops.zoo.pair(x[:1], [x])[1][0], "zoo.pair"),
    ],
)
def test_only_the_axis_that_meets_an_unknown_operation_is_frozen_and_the_operation_is_named(between, name):
    model = net(between)
    x = torch.randn(2, 3, 4, 4)
    graph = probe(model, analyse(model, lambda: model(x)), lambda: model(x))
    assert [(atom.name, atom.channels) for atom in graph.atoms] == [("a", 5), ("c", 7)]
    assert name in graph.frozen["inner.b.weight:0"]
    assert "c.weight:1" in graph.frozen
    assert {key.removesuffix(".default"): count for key, count in graph.unknown.items()} == {name: 1}


def test_an_unknown_operation_on_the_data_alone_freezes_nothing():
    model = net(lambda x: x)
    x = torch.randn(2, 3, 4, 4)
    graph = analyse(model, lambda: model(torch.ops.zoo.mystery(x)))
    assert [atom.name for atom in graph.atoms] == ["a", "inner.b", "c"]


def test_the_layer_in_which_it_happened_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.ops.zoo.mystery(x)

    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), Odd()), nn.Linear(6, 2))
    graph = analyse(model, lambda: model(torch.randn(3, 4)))
    assert graph.atoms == ()
    assert "1.1" in graph.frozen["0.weight:0"]


def test_what_flows_out_is_frozen_as_an_output():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    graph = analyse(model, lambda: model(torch.randn(3, 4)))
    assert [atom.name for atom in graph.atoms] == ["0"]
    assert "output" in graph.frozen["1.weight:0"]
