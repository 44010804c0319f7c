"""compute="sparse" with models that use layers in ways of their own, and loops by hand."""

import pytest
import torch
from computed import Recorder, both, close
from helpers import ByHand, Net, loader, net, trainer, weights
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from lightning_sparse import GMP, MaskUpdater, RigL
from lightning_sparse.compute import SparseEmbedding, SparseLinear

RIGL = RigL(every=3, stop=1.0)


class Manual(ByHand, Net):
    """Its optimizer is stepped by hand."""


class Skipping(Manual):
    """Every fourth gradient is thrown away."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        if batch_idx % 4 != 1:
            optimizer.step()


@pytest.mark.parametrize("kind", [Manual, Skipping])
@pytest.mark.parametrize("algorithm", [RigL(every=2, stop=40), GMP(every=3, stop=15)], ids=["rigl", "gmp"])
def test_loops_by_hand_train_as_with_dense_layers(kind, algorithm):
    close(*both(lambda: kind("adamw"), algorithm))


class Twice(Net):
    """One layer is used twice in a pass, and its weight is looked at by a penalty."""

    def __init__(self):
        super().__init__("adamw")
        self.middle = nn.Linear(20, 20)

    def training_step(self, batch, batch_idx):
        x = F.relu(self.net[4](self.net[:4](batch[0])))
        x = F.relu(self.middle(F.relu(self.middle(x))))
        return F.cross_entropy(self.net[6](x), batch[1]) + 1e-2 * self.middle.weight.square().sum()


def test_a_layer_used_twice_and_read_by_a_penalty_trains_as_a_dense_one():
    sparse, dense = both(Twice)
    close(sparse, dense)
    assert dense[0].moves >= 3


class Functional(Net):
    """A layer is used by its weight alone."""

    def training_step(self, batch, batch_idx):
        x = F.linear(self.net[:4](batch[0]), self.net[4].weight, self.net[4].bias)
        return F.cross_entropy(self.net[6](F.relu(x)), batch[1])


def test_code_that_takes_the_weight_itself_computes_and_grows_the_same():
    sparse, dense = both(lambda: Functional("adamw"))
    close(sparse, dense)
    assert dense[0].moves >= 3


class Keeping(Net):
    """It keeps its losses, and with them the graphs of former steps."""

    def training_step(self, batch, batch_idx):
        self.losses = [*getattr(self, "losses", ())[-3:], super().training_step(batch, batch_idx)]
        return self.losses[-1]


def test_graphs_of_former_steps_that_are_kept_do_no_harm_when_counts_change():
    close(*both(lambda: Keeping("adamw"), GMP(every=3)))


class Thawing(Net):
    """A layer is frozen at first."""

    def on_train_start(self):
        pass

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 6:
            self.net[4].requires_grad_(True)


def thawing():
    model = Thawing("adamw")
    model.net[4].requires_grad_(False)
    return model


def test_a_layer_that_is_unfrozen_joins_those_without_zeros():
    kinds = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kinds.append(type(pl_module.net[4]))

    sparse, dense = both(thawing, callbacks=lambda: [Look()])
    close(sparse, dense)
    assert kinds[:24] == [nn.Linear] * 7 + [SparseLinear] * 17


def test_two_callbacks_share_a_model():
    ends = []
    for compute in ("sparse", "dense"):
        model = net("adamw")
        first = MaskUpdater(RIGL, 0.5, include=["net.0"], compute=compute, name="a")
        second = MaskUpdater(GMP(every=4), 0.2, include=["net.4", "net.6"], compute=compute, name="b")
        recorders = [Recorder(first), Recorder(second)]
        trainer([first, second, *recorders], max_epochs=2, precision="64-true").fit(model, loader())
        ends.append(([each.masks for each in recorders], weights(model)))
    assert ends[0][0] == ends[1][0]
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-9, atol=1e-12)


class Words(Net):
    """A table of words, of which the first is padding, and a layer."""

    def __init__(self):
        super().__init__("adamw")
        self.net = nn.Sequential()
        self.table, self.head = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 5)

    def training_step(self, batch, batch_idx):
        ids = (batch[0].flatten(1)[:, :10].abs() * 15).long().clamp(max=29)
        return F.cross_entropy(self.head(self.table(ids).mean(1)), batch[1])


def test_an_embedding_that_is_asked_for_trains_as_a_dense_one():
    kinds = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kinds.append(type(pl_module.table))

    sparse, dense = both(Words, include=["table", "head"], callbacks=lambda: [Look()])
    close(sparse, dense)
    assert kinds == [SparseEmbedding] * 24 + [nn.Embedding] * 24


class Attending(Net):
    """A transformer's layer: in evaluation torch takes its weights out of the modules."""

    def __init__(self):
        super().__init__("sgd")  # AdamW enlarges the last bit of gradients that are zero but for rounding
        self.net = nn.Sequential()
        self.layer = nn.TransformerEncoderLayer(12, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(72, 5)
        self.seen = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.layer(batch[0].flatten(2).view(-1, 6, 12)).flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.training_step(batch, batch_idx))


@pytest.mark.filterwarnings("ignore:.*leaves dense.*")
def test_a_transformer_trains_and_evaluates_as_with_dense_layers():
    settings = {"val": loader(8, 16), "num_sanity_val_steps": 0}
    sparse, dense = both(Attending, **settings)
    close(sparse, dense)
    assert dense[0].moves >= 3
    assert len(dense[4].seen) == 4
    torch.testing.assert_close(sparse[4].seen, dense[4].seen, rtol=1e-9, atol=1e-12)


class Turns(ByHand, Net):
    """Two optimizers, each of a part of the network, take turns; what the other one steps is frozen meanwhile."""

    def __init__(self):
        super().__init__("adamw")

    def configure_optimizers(self):
        parts = [self.net[:5], self.net[5:]]
        return [torch.optim.AdamW(part.parameters(), lr=0.01) for part in parts]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize("algorithm", [RigL(every=3, stop=20), GMP(every=3, stop=15)], ids=["rigl", "gmp"])
def test_two_optimizers_take_turns_as_with_dense_layers(algorithm):
    sparse, dense = both(Turns, algorithm)
    close(sparse, dense)
    assert dense[0].moves >= 3


class Shared(Net):
    """One module under two names."""

    def __init__(self):
        super().__init__("adamw")
        self.again = nn.ModuleDict({"first": self.net[4]})

    def training_step(self, batch, batch_idx):
        x = F.relu(self.again["first"](self.net[:4](batch[0])))
        return F.cross_entropy(self.net[6](x), batch[1])


def test_a_module_under_two_names_is_replaced_under_both():
    sparse, dense = both(Shared)
    close(sparse, dense)
    assert sparse[4].again["first"] is sparse[4].net[4]
    assert type(sparse[4].net[4]) is nn.Linear
