"""A traced training step ends in a loss: what it compares stays, and that is no unknown operation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sparse.channels.trace import Tracer

LABELS, REAL = torch.tensor([0, 3, 1]), torch.rand(3, 4)
LOSSES = {
    "cross entropy": lambda y: F.cross_entropy(y, LABELS),
    "cross entropy of shares": lambda y: F.cross_entropy(y, REAL / REAL.sum(1, keepdim=True)),
    "cross entropy with smoothing": lambda y: F.cross_entropy(y, LABELS, label_smoothing=0.1),
    "cross entropy of pixels": lambda y: F.cross_entropy(y[:, :, None], LABELS[:, None]),
    "negative log likelihood": lambda y: F.nll_loss(y.log_softmax(1), LABELS),
    "squares": lambda y: F.mse_loss(y, REAL),
    "smooth l1": lambda y: F.smooth_l1_loss(y, REAL),
    "huber": lambda y: F.huber_loss(y, REAL),
    "binary": lambda y: F.binary_cross_entropy(y.sigmoid(), REAL),
    "binary with logits": lambda y: F.binary_cross_entropy_with_logits(y, REAL),
    "kl": lambda y: F.kl_div(y.log_softmax(1), REAL, reduction="batchmean"),
    "margin": lambda y: F.multi_margin_loss(y, LABELS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_outputs_that_a_loss_compares_stay_and_hidden_channels_may_go(name):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    with Tracer(model) as tracer:
        loss = LOSSES[name](model(torch.randn(3, 5)))
    tracer.finish(loss)
    graph = tracer.graph()
    assert [(atom.name, atom.channels) for atom in graph.atoms] == [("0", 8)]
    assert "2.weight:0" in graph.frozen
    assert not graph.unknown
