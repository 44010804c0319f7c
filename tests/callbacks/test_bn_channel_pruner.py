"""What a BNChannelPruner does to a fit: which channels leave, when, and that training goes on."""

from contextlib import nullcontext

import pytest
import torch
from helpers import OPTIMIZERS, loader, same, samples, trainer, weights
from lightning.pytorch import Callback
from pruned import CHANNELS, Net, fit, net, pruner, widths
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

NORMS = ("bn", "block.bn1", "block.bn2", "bn3")


class Watch(Callback):
    """Widths as each epoch begins, and the objects that the optimizer steps."""

    def __init__(self):
        self.widths, self.ids = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.widths.append(widths(pl_module))
        self.ids.append([id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]])


def test_half_of_the_channels_leave_when_the_epoch_ends_and_parameters_stay_the_same_objects():
    watch, model = Watch(), net()
    parameters = [id(p) for p in model.parameters()]
    fit(pruner(0.5), watch, model=model)
    assert watch.widths[0] == (16, 8, 12)
    assert sum(watch.widths[1]) == CHANNELS // 2
    assert watch.widths[1] == watch.widths[2] == widths(model)
    assert watch.ids == [parameters] * 3
    assert model.bn.running_mean.shape == model.bn.weight.shape == (widths(model)[0],)
    assert model(torch.zeros(2, 2, 6, 6)).shape == (2, 5)


def test_those_of_the_smallest_gammas_leave_by_the_largest_of_each_axis():
    model = net()

    class Scores(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 0 and batch_idx == 11:
                gamma = {n: m.weight.detach().abs().clone() for n, m in pl_module.named_modules() if n in NORMS}
                self.found = [torch.maximum(gamma["bn"], gamma["block.bn2"]), gamma["block.bn1"], gamma["bn3"]]

    watch, cut = Scores(), pruner(0.5, penalty=None, compensate=False)
    fit(cut, watch, model=model, max_epochs=2)
    line = torch.cat(watch.found).sort(descending=True).values[CHANNELS // 2 - 1]
    expected = [(scores >= line).nonzero().flatten() for scores in watch.found]
    kept = cut.recipe.indices()
    found = [kept["stem.weight"][0], kept["block.conv1.weight"][0], kept["hidden.weight"][0]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(kept["hidden.weight"][1], expected[0])  # what reads the stem loses the same


def test_several_moments_go_down_in_equal_factors():
    watch = Watch()
    fit(pruner(0.125, at=[1, 2, 3]), watch, max_epochs=4)
    assert [sum(w) for w in watch.widths] == [36, 18, 9, 5]  # 4.5 channels are 5


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"at": 0.5}, [36, 36, 18, 18]),
        ({"at": [1, 0.75]}, [36, round(36 * 0.5**0.5), round(36 * 0.5**0.5), 18]),
        ({"every": 2}, [36, 36, 18, 18]),
        ({"every": 1}, [36, round(36 * 0.5 ** (1 / 3)), round(36 * 0.5 ** (2 / 3)), 18]),
        ({"at_steps": [3, 20]}, [36, round(36 * 0.5**0.5), 18, 18]),
    ],
    ids=str,
)
def test_moments_are_epochs_shares_of_the_run_or_steps(when, expected):
    watch = Watch()
    fit(pruner(0.5, **when), watch, max_epochs=4)
    assert [sum(w) for w in watch.widths] == expected


class Steps(Callback):
    """The channels as each batch begins."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.found.append(sum(widths(pl_module)))


def test_after_a_step_that_was_asked_for_the_next_one_is_smaller():
    steps = Steps()
    fit(pruner(0.5, at_steps=[3]), steps, max_epochs=1, limit_train_batches=6)
    assert steps.found == [36, 36, 36, 18, 18, 18]


def test_steps_within_a_window_of_accumulated_batches_wait_for_its_end():
    steps = Steps()
    fit(pruner(0.5, at_steps=[2]), steps, max_epochs=1, limit_train_batches=8, accumulate_grad_batches=3)
    assert steps.found == [36] * 6 + [18] * 2


def test_keep_one_without_a_penalty_changes_no_bit_of_the_run():
    plain, _, before = fit(None, model=net("adamw", 0.25), data=loader(shuffle=True))
    watched, _, after = fit(pruner(1.0, penalty=None), model=net("adamw", 0.25), data=loader(shuffle=True))
    assert same(weights(plain), weights(watched))
    assert all(same(a, b) for a, b in zip(before, after, strict=True))




@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on(optimizer):
    model = net(optimizer)
    with pytest.warns(UserWarning, match="LBFGS starts its history anew") if optimizer == "lbfgs" else nullcontext():
        fit(pruner(0.5), model=model)
    assert sum(widths(model)) == 18
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_the_learning_rate_schedule_goes_on():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=36)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Rates(Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.found.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    fit(pruner(0.5), rates, model=Scheduled())
    assert rates.found == pytest.approx([0.1 * (1 - i / 36) for i in range(36)])


def test_bf16_mixed_finds_the_same_axes():
    full, half = pruner(0.5), pruner(0.5)
    fit(full)
    model, _, _ = fit(half, precision="bf16-mixed")
    assert full.history.cuts[0].channels.keys() == half.history.cuts[0].channels.keys()
    assert sum(widths(model)) == 18


def test_a_second_fit_of_the_same_model_prunes_again():
    cut, model = pruner(0.5), net()
    fit(cut, model=model)
    fit(cut, model=model)
    assert sum(widths(model)) == 9
    names, found = ("stem", "block.conv1", "hidden"), widths(model)
    assert cut.channels() == {n: (k, was) for n, k, was in zip(names, found, (16, 8, 12), strict=True) if k != was}


def test_gammas_start_where_they_are_told_to():
    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                self.found = pl_module.bn.weight.detach().clone()

    first = First()
    fit(pruner(0.5, gamma_init=0.5), first, max_epochs=2)
    assert torch.equal(first.found, torch.full((16,), 0.5))


def test_weight_decay_can_leave_gammas_alone():
    class Still(Net):  # no gradient anywhere: only weight decay moves weights
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0.0

    for decay in (True, False):
        model = Still("adamw")
        before = weights(model)
        fit(pruner(1.0, penalty=None, decay_gammas=decay), model=model, max_epochs=1)
        assert torch.equal(model.bn.weight, before["bn.weight"]) is not decay
        assert not torch.equal(model.stem.weight, before["stem.weight"])


@pytest.mark.filterwarnings("ignore:.*nothing trains after that")
def test_constants_of_removed_channels_are_given_to_what_reads_them():
    """Channels with gamma 0 give relu(beta): cut with compensation, the model says the same in evaluation."""
    images = samples(48)[:][0]

    class Constants(Net):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.bn3.weight[:6], self.bn3.bias[:6] = 0.0, 1.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    for compensate in (True, False):
        torch.manual_seed(3)
        model = Constants()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module is not model.bn3:
                nn.init.constant_(module.weight, 2.0)
        outputs = []

        class Look(Callback):
            def look(self, module):
                module.eval()
                with torch.no_grad():
                    self.outputs.append(module(images))
                module.train()

            def on_train_batch_end(self, trainer, pl_module, out, batch, batch_idx):
                self.look(pl_module)

            def on_train_end(self, trainer, pl_module):
                self.look(pl_module)

        look = Look()
        look.outputs = outputs
        fit(pruner(30 / 36, compensate=compensate, penalty=None), look, model=model, max_epochs=1)
        assert widths(model) == (16, 8, 6)
        difference = float((outputs[-1] - outputs[-2]).abs().max())
        assert (difference < 1e-5) is compensate


def test_a_model_whose_training_step_calls_its_layers_itself_is_cut_too():
    class Loose(Net):
        def training_step(self, batch, batch_idx):
            x = F.relu(self.bn(self.stem(batch[0])))
            x = self.block(x).mean((2, 3))
            return F.cross_entropy(self.head(F.relu(self.bn3(self.hidden(x)))), batch[1])

    model = Loose()
    fit(pruner(0.5), model=model)
    assert sum(widths(model)) == 18
    assert "training_step" not in vars(model)


def test_what_a_step_logs_is_logged_once(tmp_path):
    class Logging(Net):
        calls = 0

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

        def log(self, name, *others, **settings):
            type(self).calls += 1
            super().log(name, *others, **settings)

    fit(pruner(0.5, criterion="taylor"), model=Logging(), log_every_n_steps=10**6)
    assert Logging.calls == 36


def test_a_compiled_model_is_cut_too():
    model = net()
    trainer([pruner(0.5)], max_epochs=2).fit(torch.compile(model, backend="eager"), loader())
    assert sum(widths(model)) == 18


def test_metrics_of_the_model_count_its_own_batches_only():
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.mean(loss)
            return loss

    torch.manual_seed(1)
    model = Counting()
    fit(pruner(0.5), model=model)
    assert float(model.mean.weight) == 36.0
