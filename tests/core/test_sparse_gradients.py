"""Gradients that hold looked-up rows only: refused by name, with the way out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sparse import SET, STR, RigL, Sparsifier, Static


class Recommender(nn.Module):
    """Looks rows up in a plain parameter: nothing about it says how."""

    def __init__(self, sparse):
        super().__init__()
        self.items, self.head, self.sparse = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 2), sparse

    def forward(self, rows):
        return self.head(F.embedding(rows, self.items, sparse=self.sparse))


def run(algorithm, sparse, exclude=()):
    model = Recommender(sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Sparsifier(model, algorithm, 0.5, optimizers=[optimizer], include=["*"], exclude=exclude, total_steps=9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 3])).square().sum().backward()
        optimizer.step()
    return engine


@pytest.mark.parametrize(
    "algorithm",
    [Static(), SET(every=1), RigL(every=1), RigL(every=1, replace_step=True), STR()],
    ids=["static", "set", "rigl", "replace_step", "str"],
)
def test_rows_of_a_plain_parameter_are_refused_by_name(algorithm):
    text = r"sparse gradients, which no mask fits, came for items; .* sparse=False, or .* exclude=\['items'\]"
    with pytest.raises(ValueError, match=text):
        run(algorithm, sparse=True)


def test_both_ways_out_work():
    assert run(RigL(every=1), sparse=False).masks.keys() == {"items", "head.weight"}
    assert run(RigL(every=1), sparse=True, exclude=["items"]).masks.keys() == {"head.weight"}
