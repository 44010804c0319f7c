"""SynFlow takes whatever a model takes: its own example, or the inputs of a batch."""

import copy

import pytest
import torch
from helpers import Net, digest, loader, net, trainer
from torch import nn

from lightning_sparse import MaskUpdater, Sparsifier, SynFlow


def density(model, inputs):
    return Sparsifier(model, SynFlow(3), 0.5, example_inputs=inputs).density()


class Both(nn.Module):
    """Takes two tensors, by place or by name, and gives a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, left, right):
        return {"sum": self.left(left) + self.right(right), "count": torch.tensor(3)}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))


class Graph(nn.Module):
    """Its inputs have no samples: features of five nodes, and how these are connected."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, nodes, edges):
        return edges @ self.layer(nodes)


class Sums(nn.Module):
    """Takes one bag of any number of rows; squares make its flow another than that of its rows together."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, rows):
        return self.layer(rows).sum(0).square()


class Recurrent(nn.Module):
    """Makes its own first state, of the default dtype."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        start = torch.zeros(1, len(x), 4)
        return self.head(self.lstm(x, (start, start))[0][:, -1])


CASES = [
    (Both, (torch.randn(3, 6), torch.randn(3, 5))),
    (Both, {"right": torch.randn(3, 5), "left": torch.randn(3, 6)}),
    (Words, torch.randint(0, 9, (3, 7))),
    (Graph, (torch.randn(5, 6), torch.eye(5))),
    (lambda: nn.Linear(6, 4), torch.randn(6)),
    (Recurrent, torch.randn(2, 5, 6)),
]


@pytest.mark.filterwarnings("ignore:SynFlow is weak")
@pytest.mark.parametrize(
    ("make", "inputs"),
    CASES,
    ids=["tuple", "dict", "tokens", "graph", "one sample", "recurrent"],
)
def test_any_inputs_will_do(make, inputs):
    assert density(make(), inputs) == pytest.approx(0.5, abs=0.01)


def test_numbers_in_the_inputs_and_their_count_do_not_matter():
    found = []
    for inputs in (torch.ones(1, 6), 7 * torch.randn(4, 6)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        found.append(digest(Sparsifier(model, SynFlow(5), 0.3, example_inputs=inputs).masks))
    assert found[0] == found[1]


class Sees(nn.Module):
    """Remembers the shapes that it is called with."""

    def __init__(self, inner, shapes):
        super().__init__()
        self.inner, self.shapes = inner, shapes

    def __deepcopy__(self, memo):
        return Sees(copy.deepcopy(self.inner, memo), self.shapes)

    def forward(self, *inputs):
        self.shapes.append([tuple(x.shape) for x in inputs])
        return self.inner(*inputs)


@pytest.mark.filterwarnings("ignore:SynFlow is weak")
@pytest.mark.parametrize(
    ("make", "inputs", "shapes"),
    [
        (lambda: nn.Linear(6, 4), torch.randn(64, 6), [(1, 6)]),
        (Words, torch.randint(0, 9, (64, 7)), [(1, 7)]),
        (Both, (torch.randn(3, 6), torch.randn(3, 5)), [(1, 6), (1, 5)]),
        (Graph, (torch.randn(5, 6), torch.eye(5)), [(5, 6), (5, 5)]),
        (Sums, (torch.randn(5, 6),), [(5, 6)]),
    ],
)
def test_one_sample_is_enough_and_what_is_no_sample_stays_whole(make, inputs, shapes):
    """A hundred passes of a whole batch would be slow; the rows of one sample belong together."""
    seen = []
    Sparsifier(Sees(make(), seen), SynFlow(3), 0.5, example_inputs=inputs)
    assert seen[-3:] == [shapes] * 3


def test_the_default_dtype_is_afterwards_as_before():
    density(nn.Linear(6, 4), torch.randn(6))
    assert torch.get_default_dtype() is torch.float32
    with pytest.raises(ValueError, match="forward"):
        density(nn.Linear(6, 4), torch.randn(7))
    assert torch.get_default_dtype() is torch.float32


def masks(model):
    updater = MaskUpdater(SynFlow(3), 0.25)
    trainer([updater], max_steps=1).fit(model, loader(4, 16))
    return updater.masks


def test_the_example_of_a_model_gives_the_masks_that_a_batch_gives():
    model = net()
    model.example_input_array = torch.zeros(1, 2, 6, 6)
    assert digest(masks(model)) == digest(masks(net()))


def test_the_example_of_a_model_goes_to_the_device_like_a_batch():
    moved = []

    class Moves(Net):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            moved.append(batch)
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    model = Moves()
    model.example_input_array = torch.zeros(1, 2, 6, 6)
    masks(model)
    assert len(moved) == 2  # the example, and the batch that is trained on


def test_forward_may_ask_its_trainer_and_log():
    class Asks(Net):
        def forward(self, x):
            self.log("seen", float(self.trainer.global_step))
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    torch.manual_seed(1)
    assert digest(masks(Asks())) == digest(masks(net()))
