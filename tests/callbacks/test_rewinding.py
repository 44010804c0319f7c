"""Lottery tickets: after every pruning training goes back to an early state, bit for bit, and starts again from it."""

import copy

import pytest
import torch
from helpers import digest, loader, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_sparse import GlobalMagnitude, MaskUpdater, Sparsifier

WEIGHTS = ("net.0.weight", "net.4.weight")  # 72 and 320
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2),
}


class Normed(LightningModule):
    """Has running statistics, biases, and a frozen part that has to stay out of it."""

    def __init__(self, optimizer="sgd", schedule=None, **config):
        super().__init__()
        layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
        self.net, self.optimizer, self.schedule, self.config = nn.Sequential(*layers), optimizer, schedule, config
        self.net[1].bias.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0)

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), **self.config}}


class Diary(Callback):
    """Copies of model and optimizer after every step, and what groups say when a batch starts."""

    def __init__(self, updater):
        self.updater, self.rows, self.groups = updater, [], []

    def on_train_start(self, trainer, pl_module):
        self.write(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        group = trainer.optimizers[0].param_groups[0]
        self.groups.append({key: value for key, value in group.items() if key != "params"})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.write(trainer, pl_module)

    def write(self, trainer, pl_module):
        state = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
        masks = {name: mask.clone() for name, mask in self.updater.masks.items()}
        self.rows.append((weights(pl_module), state, masks))

    def rates(self):
        return [group["lr"] for group in self.groups]


def run(algorithm, model=None, data=None, updater=None, epochs=3, callbacks=(), start=None, **settings):
    """Four steps an epoch."""
    torch.manual_seed(1)
    model, updater = model or Normed(), updater or MaskUpdater(algorithm, 0.25)
    diary = Diary(updater)
    fit = trainer([updater, diary, *callbacks], max_epochs=epochs, enable_checkpointing=bool(callbacks), **settings)
    fit.fit(model, data or loader(4, 16), ckpt_path=start)
    return model, updater, diary, fit


def live(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def masked(tensors, masks):
    return {name: value * masks[name] if name in masks else value for name, value in tensors.items()}


def state_of(row, model):
    """Of the optimizer, by parameter name and key, dead entries zero."""
    _, state, masks = row
    names = [name for name, _ in model.named_parameters()]
    flat = {(names[i], key): value for i, kept in state.items() for key, value in kept.items() if value is not None}
    return {at: value * masks[at[0]] if at[0] in masks and value.ndim else value for at, value in flat.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("rewind", "step"), [("init", 0), (2, 2), (0.25, 3)])
def test_each_pruning_goes_back_bit_for_bit_and_dead_weights_are_zero(rewind, step, optimizer):
    model, updater, diary, _ = run(GlobalMagnitude(rounds=2, stop=10, rewind=rewind), Normed(optimizer))
    assert updater.sparsifier.rewinds == 2
    assert [live(masks) for _, _, masks in diary.rows] == [392] * 5 + [196] * 5 + [98] * 3  # 1, 1/2, 1/4
    early, early_state, _ = diary.rows[step]
    for moment in (5, 10):
        values, state, masks = diary.rows[moment]
        assert same(values, masked(early, masks))  # biases and running statistics too
        assert not same(values, masked(diary.rows[moment - 1][0], masks)), "nothing was trained in between"
        expected = state_of((early, early_state, masks), model)
        assert state_of(diary.rows[moment], model).keys() == expected.keys()
        assert all(torch.equal(state_of(diary.rows[moment], model)[at], value) for at, value in expected.items())
        assert all(bool((values[name][~mask] == 0).all()) for name, mask in masks.items())
        raw = {i: kept for i, kept in enumerate(state.values()) if kept}
        assert bool(raw) == bool(step)  # at the very start an optimizer remembers nothing


def test_pruning_goes_by_the_weights_that_were_trained_not_by_those_gone_back_to():
    _, _, diary, _ = run(GlobalMagnitude(stop=6, rewind="init"))
    before, after = diary.rows[5], diary.rows[6]
    twin = run(GlobalMagnitude(stop=6))[2].rows[6]  # the same without going back
    assert same(after[2], twin[2])
    assert not same(after[0], twin[0])
    assert not same(before[2], after[2])


def tickets(model, batches, moments, back, target):
    """Frankle & Carbin's procedure with SGD and momentum, written out; weights and masks after every step."""
    names = [name for name, _ in model.named_parameters()]
    w = {name: value.detach().clone() for name, value in model.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in w.items()}
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in w.items() if value.ndim > 1}
    size, history = live(masks), []
    early = ({n: v.clone() for n, v in w.items()}, {n: v.clone() for n, v in velocity.items()})
    for step, (x, y) in enumerate(batches, 1):
        leaves = {name: value.clone().requires_grad_() for name, value in w.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, x), y)
        for name, g in zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            velocity[name] = (0.5 * velocity[name] + g) * masks.get(name, 1)
            w[name] = (w[name] - 0.2 * velocity[name]) * masks.get(name, 1)
        if step == back:
            early = ({n: v.clone() for n, v in w.items()}, {n: v.clone() for n, v in velocity.items()})
        if step in moments:
            n = round(size * (target / size) ** ((moments.index(step) + 1) / len(moments)))
            flat = sorted((-abs(float(w[name][tuple(at)])), name, tuple(at.tolist()))
                          for name, mask in masks.items() for at in mask.nonzero())  # fmt: skip
            masks = {name: torch.zeros_like(mask) for name, mask in masks.items()}
            for _, name, at in flat[:n]:
                masks[name][at] = True
            w = {name: value * masks.get(name, 1) for name, value in early[0].items()}
            velocity = {name: value * masks.get(name, 1) for name, value in early[1].items()}
        history.append((dict(w), masks))
    return history


@pytest.mark.parametrize("rewind", ["init", 2])
def test_a_whole_run_is_the_procedure_of_the_papers(rewind):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(10, 6).double(), torch.randint(0, 3, (10,))) for _ in range(14)]
    expected = tickets(copy.deepcopy(model), batches, [4, 8, 12], rewind, 14)  # 0.2 of 72
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    engine = Sparsifier(model, GlobalMagnitude(rounds=3, stop=12, rewind=rewind), 0.2, optimizers=[optimizer])
    for (x, y), (w, masks) in zip(batches, expected, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert digest(engine.masks) == digest(masks)
        assert all(torch.allclose(value, w[name], rtol=1e-10) for name, value in model.named_parameters())
    assert engine.rewinds == 3


def test_a_second_fit_neither_prunes_again_nor_goes_back():
    algorithm = GlobalMagnitude(rounds=2, stop=10, rewind="init")
    model, updater, first, _ = run(algorithm)
    _, _, second, _ = run(algorithm, model, updater=updater)
    assert all(same(masks, first.rows[-1][2]) for _, _, masks in second.rows)
    assert updater.sparsifier.rewinds == 2
    assert len({digest(values) for values, _, _ in second.rows}) == 13


@pytest.mark.filterwarnings("ignore:.*the run ends at step 8.*")
def test_a_fit_after_one_that_was_cut_short_goes_back_to_its_own_start():
    algorithm = GlobalMagnitude(rounds=2, stop=10, rewind="init")
    model, updater, _, _ = run(algorithm, epochs=2)  # eight steps: one round
    _, _, diary, _ = run(algorithm, model, updater=updater)
    start, _, _ = diary.rows[0]
    assert [live(masks) for _, _, masks in diary.rows] == [196] * 10 + [98] * 3
    assert same(diary.rows[10][0], masked(start, diary.rows[10][2]))


def scheduled():
    return Normed("adamw", lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.9), interval="step")


LATE = GlobalMagnitude(rounds=2, stop=8, rewind=2, rewind_schedule=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(LATE, scheduled(), stateful(4, 16), callbacks=[saver(folder, 1)]), folder


@pytest.mark.parametrize("step", [2, 4, 5, 6, 8, 9])
def test_a_run_resumed_anywhere_ends_bit_for_bit_as_the_whole_one(whole, step):
    """Prunings at 4 and 8, back to 2; 4 and 8 also end epochs."""
    model, updater, diary, fit, folder = whole
    path = folder / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    torch.manual_seed(9)
    again, other, pages, resumed = run(LATE, scheduled(), stateful(4, 16), callbacks=[saver(folder, 1)], start=path)
    assert same(weights(model), weights(again))
    assert same(updater.masks, other.masks)
    assert same(state_tensors(fit.optimizers[0]), state_tensors(resumed.optimizers[0]))
    assert pages.rates() == diary.rates()[step:]
    assert other.sparsifier.rewinds == 2
