"""What cannot work with other people's modules is refused before training, by name and with the way out."""

import pytest
import torch
from helpers import trainer
from modules.plain import Recommender, ratings
from modules.subject import Wrapped
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from lightning_sparse import MaskUpdater

pytestmark = [pytest.mark.modules, pytest.mark.filterwarnings("ignore")]


def refusal(model, **globs):
    before = {name: value.detach().clone() for name, value in model.named_parameters() if not is_lazy(value)}
    with pytest.raises(ValueError) as error:
        trainer([MaskUpdater("rigl", **globs)], max_epochs=1).fit(model, DataLoader(ratings(), batch_size=64))
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())
    return str(error.value)


class RowByRow(Wrapped):
    """Its embeddings have sparse gradients, as those of large recommenders do."""

    def configure_optimizers(self):
        return torch.optim.SparseAdam(self.net.user_embedding.parameters(), lr=1e-2)


def test_embeddings_with_sparse_gradients_are_named():
    model = RowByRow(Recommender(sparse=True), lambda net, batch: F.mse_loss(net(*batch[:2]), batch[2]))
    text = refusal(model, include=["*embedding*"])
    assert "no mask fits: net.user_embedding.weight, net.item_embedding.weight; build them with sparse=False" in text


def test_layers_of_torch_geometric_that_have_no_shape_yet_are_named():
    from torch_geometric.nn import GCN

    text = refusal(Wrapped(GCN(in_channels=-1, hidden_channels=8, num_layers=2), lambda net, batch: None))
    assert "lazy parameters have no shape yet: net.convs.0.lin.weight; run one batch through the model first" in text


def test_a_model_of_embeddings_alone_is_told_what_it_can_name():
    net = nn.ModuleDict({"user": nn.Embedding(9, 4), "item": nn.Embedding(9, 4)})
    text = refusal(Wrapped(net, lambda net, batch: None))
    assert "nothing to make sparse; name weights with include=[...]" in text
    assert "candidates: ['net.user.weight', 'net.item.weight']" in text
