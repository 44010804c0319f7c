"""Manual optimization: several optimizers, raw steps, steps without a batch of their own."""

import pytest
import torch
from helpers import DENSITY, LIVE, Net, Recorder, body, loader, trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_sparse import SET, ConstantSchedule, MaskUpdater, RigL, SparseMomentum

WHEN = {"every": 3, "stop": 20}
ALGORITHMS = {"rigl": RigL(**WHEN), "set": SET(**WHEN), "momentum": SparseMomentum(**WHEN)}


class Two(Net):
    """The body and the head have an optimizer each; the head's is stepped behind Lightning's back, and twice."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        lower, _ = self.optimizers()
        _, upper = self.optimizers(use_pl_optimizer=False)
        self._backward(batch, lower)
        lower.step()
        for _ in range(2):
            self._backward(batch, upper)
            upper.step()

    def _backward(self, batch, optimizer):
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, 0))

    def configure_optimizers(self):
        head = {id(w) for w in self.net[6].parameters()}
        rest = [w for w in self.parameters() if id(w) not in head]
        return [torch.optim.AdamW(rest, lr=1e-2), torch.optim.SGD(self.net[6].parameters(), lr=0.1, momentum=0.9)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_optimizer_counts_its_own_steps_and_keeps_its_own_weights_sparse(name):
    updater = MaskUpdater(ALGORITHMS[name], DENSITY)
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(Two(), loader())
    state = updater.sparsifier.state_dict()["params"]
    assert {key: row["steps"] for key, row in state.items()} == dict(zip(LIVE, (12, 12, 24), strict=True))
    assert (recorder.leaks, recorder.state_leaks) == (0, 0)
    assert recorder.moves >= 4
    lower = ("net.0.weight", "net.4.weight")  # the budget of an optimizer stays with it
    assert all(sum(c[n] for n in lower) == sum(LIVE[n] for n in lower) for c in recorder.counts)


@pytest.fixture
def moved() -> list[int]:
    """The batches in which the masks of the head moved; it steps twice a batch, its masks move every third step."""
    seen = []

    class Watched(Two):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            seen.append(updater.masks["net.6.weight"].clone())

    updater = MaskUpdater(RigL(every=3, stop=24, fraction=ConstantSchedule(0.3)), DENSITY, include=["net.6"])
    trainer([updater], max_epochs=1).fit(Watched(), loader())
    return [i for i in range(1, len(seen)) if not torch.equal(seen[i], seen[i - 1])]


def test_masks_move_by_the_steps_of_their_own_optimizer(moved):
    assert moved[:3] == [1, 2, 4]  # steps 3, 6 and 9


def test_a_stop_in_steps_is_kept_where_lightning_cannot_count_the_steps(moved):
    assert moved == [1, 2, 4, 5, 7, 8, 10, 11]  # to step 24


class Gan(LightningModule):
    """Both networks get gradients in every batch, but each optimizer steps its own."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.maker, self.judge = nn.Linear(8, 72), body()

    def training_step(self, batch, batch_idx):
        makes, judges = self.optimizers()
        fake = self.maker(torch.ones(4, 8) * batch_idx).view(4, 2, 6, 6)
        loss = F.cross_entropy(self.judge(batch[0] + fake), batch[1])
        makes.zero_grad()
        judges.zero_grad()
        self.manual_backward(loss)
        (makes if batch_idx % 2 else judges).step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.maker.parameters()), torch.optim.Adam(self.judge.parameters(), lr=0.01)]


def test_a_step_touches_only_the_weights_of_its_own_optimizer():
    updater = MaskUpdater(RigL(every=2, stop=6), DENSITY, allocation="uniform")
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(Gan(), loader())
    state = updater.sparsifier.state_dict()["params"]
    assert {row["steps"] for row in state.values()} == {6}
    assert (recorder.leaks, recorder.state_leaks) == (0, 0)
    assert recorder.moves >= 4


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_loss_of_none_is_a_step_without_gradients():
    class Lazy(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)

    updater = MaskUpdater(RigL(every=3, stop=20), DENSITY)
    recorder = Recorder(updater)
    trainer([updater, recorder], max_epochs=2).fit(Lazy(), loader())
    assert recorder.leaks == 0
    assert recorder.moves >= 3
    assert all(counts == LIVE for counts in recorder.counts)
