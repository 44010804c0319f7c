"""Linear layers that other packages wrote themselves, and embeddings whose gradients no mask fits."""

import pytest
import torch
from torch import nn

from lightning_sparse import NM, Sparsifier, Static
from lightning_sparse.core.patterns import outputs_first
from lightning_sparse.core.select import inputs_first, select


class Linear(nn.Module):
    """As torch_geometric's: no nn.Linear, and its widths are called channels."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        lazy = in_channels < 0
        self.weight = nn.UninitializedParameter() if lazy else nn.Parameter(torch.randn(out_channels, in_channels))


class Conv1D(nn.Module):
    """As transformers': a linear layer whose weight has its inputs first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))


class Table(nn.Module):
    """Of the shape of a Linear, and says nothing of inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))


@pytest.mark.parametrize("layer", [Linear(3, 4), Conv1D(4, 3)], ids=["torch_geometric", "transformers"])
def test_a_layer_that_says_it_is_linear_is_chosen_by_default(layer):
    net = nn.Sequential(layer, Table(), nn.LayerNorm(4))
    assert [target.name for target in select(net)] == ["0.weight"]


def test_a_lazy_one_is_refused_by_name():
    with pytest.raises(ValueError, match=r"lazy parameters have no shape yet: 0\.weight; run one batch"):
        select(nn.Sequential(Linear(-1, 4), nn.Linear(4, 4)))


def test_a_weight_with_inputs_first_is_turned_for_patterns_and_back():
    layer = Conv1D(2, 4)
    assert inputs_first(layer)
    turned = outputs_first(layer.weight, layer)
    assert turned.shape == (2, 4)
    assert torch.equal(turned[1], layer.weight[:, 1])
    assert torch.equal(outputs_first(turned, layer), layer.weight)


def test_two_of_four_are_two_of_four_inputs_of_every_output():
    # the two largest of each column are kept: outputs are columns here
    net = nn.Sequential(Conv1D(3, 4))
    numbers = torch.tensor([[9.0, 1, 8], [7, 2, 1], [1, 3, 7], [2, 4, 2]])
    net[0].weight = nn.Parameter(numbers.clone())
    Sparsifier(net, Static(), pattern=NM(2, 4), init="magnitude")
    assert net[0].weight.tolist() == [[9, 0, 8], [7, 0, 0], [0, 3, 7], [0, 4, 0]]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_with_sparse_gradients_is_refused_by_name_before_it_is_touched(kind):
    net = nn.Sequential(kind(9, 4, sparse=True), nn.Linear(4, 4))
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"embeddings with sparse=True .* no mask fits: 0\.weight; build them with"):
        Sparsifier(net, Static(), 0.5, include=["*"])
    assert torch.equal(net[0].weight, before)
    assert [target.name for target in select(net)] == ["1.weight"]  # left dense, it hinders nobody


def test_a_frozen_embedding_with_sparse_gradients_gets_none_and_hinders_nobody():
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True).requires_grad_(False), nn.Linear(4, 4))
    assert [target.name for target in select(net, include=["*"])] == ["1.weight"]
