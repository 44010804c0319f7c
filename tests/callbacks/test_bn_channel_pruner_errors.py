"""What cannot work is refused before anything is changed, with the way out."""

import pytest
import torch
from helpers import ByHand, loader, same, trainer, weights
from helpers import Net as WithoutNorms
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pruned import Net, fit, net, pruner
from torch import nn
from torch.nn import functional as F

from lightning_sparse import LinearSchedule
from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(ValueError, match="BNChannelPruner: 14 problems") as error:
        BNChannelPruner(
            0.0,
            criterion="fisher",
            scope="all",
            target="watts",
            at=[0],
            every=2,
            l1=-1.0,
            penalty="l0",
            ratio=2.0,
            round_to=0,
            min_channels=0,
            exclude="head",
            shrink="now",
            compensate="yes",
        )
    names = ("keep", "criterion", "scope", "target", "at", "every", "l1", "penalty", "ratio", "round_to", "exclude")
    for name in (*names, "min_channels", "shrink", "compensate"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"at": 1.0}, "shares of the run between 0 and 1"),
        ({"at": []}, "no moments"),
        ({"at_steps": 3}, "list of optimizer steps"),
        ({"at": 1, "at_steps": [3]}, "at and at_steps each say when"),
        ({"l1": "strong"}, "a number, a Schedule or 'auto'"),
        ({"l1": LinearSchedule(1.0, -1.0)}, "l1 must be a number from 0"),
        ({"threshold": "low"}, "threshold must be a number"),
        ({"cap": 1.0}, "cap must be a share"),
        ({"target": "latency", "shrink": "end", "at": [1, 2]}, "cuts on trial"),
        ({"batches": 0}, "batches must be a whole number from 1 on"),
        ({"name": 3}, "name must be str"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(settings, text):
    with pytest.raises(ValueError, match=text):
        BNChannelPruner(0.5, **settings)


@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_strategies_are_refused_before_training_starts(kind):
    strategy = type(kind, (), {})()
    fake = type("Trainer", (), {"strategy": strategy, "callbacks": []})()
    cut = pruner(0.5)
    fake.callbacks = [cut]
    with pytest.raises(MisconfigurationException, match=f"{kind}.*strategy=\"ddp\""):
        cut.setup(fake, net(), "fit")


@pytest.mark.parametrize("settings", [{}, {"criterion": "l1"}, {"penalty": None}], ids=str)
def test_without_batchnorm_what_needs_one_is_refused(settings):
    model = WithoutNorms()
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=r"no BatchNorm with weights(.)*take"):
        fit(pruner(0.5, **settings), model=model)
    assert same(weights(model), before)
    model, _, _ = fit(pruner(0.5, criterion="l1", penalty=None), model=model)
    assert sum(p.numel() for p in model.parameters()) < sum(v.numel() for v in before.values())


def test_where_nothing_can_be_cut_the_reasons_are_told_and_nothing_is_changed():
    class Frozen(Net):
        def __init__(self):
            super().__init__()
            self.block = nn.Identity()
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            x = self.bn(self.stem(x))
            return self.head(torch.linalg.qr(x.flatten(2).transpose(1, 2))[0].mean(1)[:, :16])

    torch.manual_seed(0)
    model = Frozen()
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=r"no channel of this model can be cut(.|\n)*linalg_qr"):
        fit(pruner(0.5), model=model, data=loader(24))
    assert same(weights(model), before)


@pytest.mark.parametrize(
    ("keep", "settings", "text"),
    [
        (0.01, {"min_channels": 4}, r"keep=0.01.* cannot be met: at least 0.\d+ stays"),
        (0.2, {"cap": 0.5}, "cannot be met"),
        (0.01, {"target": "params"}, "cannot be met"),
    ],
    ids=str,
)
def test_an_impossible_target_is_refused_with_the_least_that_is_possible(keep, settings, text):
    model = net()
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=text):
        fit(pruner(keep, **settings), model=model)
    assert same(weights(model), before)


def test_every_axis_excluded_is_refused():
    model = net()
    with pytest.raises(MisconfigurationException, match=r"can score no channel of this model.*excluded by name"):
        fit(pruner(0.5, exclude=["*"]), model=model)
    with pytest.raises(ValueError, match="matches no parameter"):
        fit(pruner(0.5, exclude=["tail"]), model=model)


def test_excluded_layers_keep_their_channels():
    model, _, _ = fit(pruner(0.5, exclude=["hidden"], scope="layer"))
    assert (model.stem.out_channels, model.block.conv1.out_channels, model.hidden.out_features) == (8, 4, 12)


def test_two_pruners_are_refused():
    with pytest.raises(MisconfigurationException, match="would each cut the other's channels"):
        fit(pruner(0.5), pruner(0.5, name="second"))


def test_moments_that_never_come_are_warned_of():
    with pytest.warns(UserWarning, match=r"ends after 3 epochs, before \[5\]"):
        fit(pruner(0.5, at=[1, 5]))
    with pytest.warns(UserWarning, match="nothing trains after that"):
        fit(pruner(0.5, at=3))


def test_a_share_of_a_run_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r"at=0\.5 is a share of the run, whose length in epochs is unknown"):
        fit(pruner(0.5, at=0.5), max_epochs=-1, limit_train_batches=2)


def test_gradients_of_the_loss_are_refused_under_manual_optimization_and_all_else_works():
    class Manual(ByHand, Net): ...

    with pytest.raises(MisconfigurationException, match="under manual optimization there is none"):
        fit(pruner(0.5, criterion="taylor"), model=Manual())
    model, run, _ = fit(pruner(0.5, criterion="activation"), model=Manual())
    assert run.global_step == 36
    assert model.stem.out_channels + model.block.conv1.out_channels + model.hidden.out_features == 18


def test_two_optimizers_under_manual_optimization_train_on_with_what_is_left():
    class Adversarial(Net):
        """A generator of features and a discriminator of them, each with its optimizer."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.critic = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

        def configure_optimizers(self):
            body = [p for n, p in self.named_parameters() if not n.startswith("critic")]
            return torch.optim.Adam(body, 1e-2), torch.optim.SGD(self.critic.parameters(), 0.1, momentum=0.9)

        def features(self, x):
            return self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3))

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            features = self.features(batch[0])
            loss = F.cross_entropy(self.head(F.relu(self.bn3(self.hidden(features)))), batch[1])
            first.zero_grad()
            self.manual_backward(loss + self.critic(features).mean())
            first.step()
            second.zero_grad()
            self.manual_backward(self.critic(self.features(batch[0]).detach()).square().mean())
            second.step()

    torch.manual_seed(1)
    model = Adversarial()
    fit(pruner(0.5), model=model)
    assert model.stem.out_channels == model.critic[0].in_features == model.hidden.in_features
    total = model.stem.out_channels + model.block.conv1.out_channels + model.hidden.out_features
    assert total + model.critic[0].out_features == (36 + 8) // 2
    trainer([], max_epochs=1).fit(model, loader())
