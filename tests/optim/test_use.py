"""In loops with closures, gradient scalers and schedulers; in Lightning's Trainer and CLI."""

import sys

import pytest
import torch
from helpers import Net, net, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_sparse import ConstantSchedule, MaskUpdater, RigL, Sparsifier, cli
from lightning_sparse.optim import MaskedAdam, MaskedAdamW, MaskedSGD, ProxSGD

MAKE = {
    "sgd": lambda w: MaskedSGD(w, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda w: MaskedAdam(w, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda w: MaskedAdamW(w, lr=1e-2, weight_decay=0.1),
    "prox": lambda w: ProxSGD(w, lr=0.05, momentum=0.5, l1=1e-3, groups="rows"),
}


def sparse(kind="adamw", make=None):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    optimizer = (make or MAKE[kind])(model.parameters())
    algorithm = RigL(every=2, stop=9, fraction=ConstantSchedule(0.4))
    return model, optimizer, Sparsifier(model, algorithm, 0.1, optimizers=[optimizer])


def loss_of(model, step, scale=1.0):
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
    return scale * (model(x) - x[:, :3]).square().mean()


def train(model, optimizer, steps=10, each=lambda: None):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        each()


def same_weights(left, right):
    return all(map(torch.equal, left.parameters(), right.parameters()))


@pytest.mark.parametrize("kind", MAKE)
def test_a_closure_gives_the_same_steps_and_its_loss_back(kind):
    model, optimizer, _ = sparse(kind)
    train(model, optimizer)
    other, closed, _ = sparse(kind)
    losses = []

    def closure():
        closed.zero_grad()
        losses.append(loss_of(other, len(losses)))
        losses[-1].backward()
        return losses[-1]

    assert all(closed.step(closure) is losses[-1] for _ in range(10))
    assert same_weights(model, other)


@pytest.mark.parametrize("kind", MAKE)
def test_a_gradient_scaler_scales_out_and_skips_overflows(kind):
    model, optimizer, engine = sparse(kind)
    train(model, optimizer)
    other, scaled, _ = sparse(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10**6)
    for step in range(10):
        for overflow in (True, False) if step == 5 else (False,):
            before = {name: value.clone() for name, value in state_tensors(scaled).items()}
            scaled.zero_grad()
            scaler.scale(loss_of(other, step, torch.inf if overflow else 1.0)).backward()
            scaler.step(scaled)
            scaler.update()
            if overflow:
                after = state_tensors(scaled)
                assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert same_weights(model, other)
    assert engine.updates == 4


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=11)  # cycles beta1 too


@pytest.mark.parametrize("schedule", [cosine, one_cycle])
def test_learning_rate_schedules_move_it_as_they_move_torchs(schedule):
    results = []
    for make in (MAKE["adamw"], lambda w: torch.optim.AdamW(w, lr=1e-2, weight_decay=0.1)):
        model, optimizer, _ = sparse(make=make)
        scheduler = schedule(optimizer)
        train(model, optimizer, each=scheduler.step)
        results.append(model)
    assert same_weights(*results)


def test_a_learning_rate_may_be_a_tensor():
    for kind in (MaskedSGD, MaskedAdam, MaskedAdamW, ProxSGD):
        results = []
        for lr in (0.25, torch.tensor(0.25)):
            model, optimizer, _ = sparse(make=lambda w, lr=lr, kind=kind: kind(w, lr=lr))
            train(model, optimizer, 3)
            results.append(model)
        for mine, theirs in zip(results[0].parameters(), results[1].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)  # torch multiplies in another order


@pytest.mark.parametrize("kind", MAKE)
def test_the_engine_tells_the_masks_when_it_attaches_and_whenever_they_move(kind):
    model, optimizer, engine = sparse(kind)
    seen = []

    def look():
        for name, p in engine.params.items():
            row = optimizer.state[model.get_parameter(name)]
            assert {row[key].shape for key in optimizer.per_weight if key in row} == {(p.live,)}
        seen.append(engine.updates)

    train(model, optimizer, each=look)
    assert seen == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]


class Masked(Net):
    """The network of the contract, with an optimizer of ours."""

    def configure_optimizers(self):
        return MAKE[self.optimizer](self.parameters())


def fit(kind, folder, start=None, seed=1):
    torch.manual_seed(seed)
    model = Masked(kind, dropout=0.25)
    updater = MaskUpdater(RigL(every=3, stop=1.0), 0.25)
    run = trainer([updater, saver(folder, 7)], max_epochs=2, enable_checkpointing=True)
    torch.manual_seed(seed)
    run.fit(model, stateful(4, 56, shuffle=True), ckpt_path=start)
    return weights(model), {name: value.clone() for name, value in state_tensors(run.optimizers[0]).items()}


@pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("step", [7, 21])
def test_a_resumed_fit_goes_on_bit_for_bit(kind, step, tmp_path):
    whole, state = fit(kind, tmp_path / "whole")
    resumed, again = fit(kind, tmp_path / "again", start=tmp_path / "whole" / f"step={step}.ckpt", seed=5)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert state.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert any(value.dtype == torch.uint8 for value in again.values())


def test_a_fit_is_that_of_torchs_optimizer(tmp_path):
    mine, _ = fit("adamw", tmp_path)

    class Plain(Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)

    torch.manual_seed(1)
    model = Plain(dropout=0.25)
    torch.manual_seed(1)
    run = trainer([MaskUpdater(RigL(every=3, stop=1.0), 0.25)], max_epochs=2)
    run.fit(model, stateful(4, 56, shuffle=True))
    assert all(torch.equal(value, mine[name]) for name, value in weights(model).items())


def test_full_density_is_a_plain_dense_run():
    results = []
    for callbacks in ([MaskUpdater("static", 1.0)], []):
        torch.manual_seed(1)
        model = Masked("adamw")
        trainer(callbacks, max_steps=5).fit(model, stateful(4, 56))
        results.append(weights(model))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_network_without_an_engine_learns():
    model = net()
    optimizer = MaskedAdam(model.parameters(), lr=1e-2)
    weight = model.net[4].weight
    mask = torch.rand(weight.shape) < 0.1
    with torch.no_grad():
        weight.mul_(mask)
    optimizer.set_mask(weight, mask)
    losses = []
    for batch in [next(iter(stateful(48)))] * 30:
        loss = model.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert int(weight.count_nonzero()) == int(mask.sum())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*configure_optimizers` will be overridden.*")
@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("MaskedSGD", ["momentum=0.9", "nesterov=true"], ["momentum_buffer"]),
        ("MaskedAdamW", ["weight_decay=0.1", "betas=[0.8,0.9]"], ["exp_avg", "exp_avg_sq"]),
        ("ProxSGD", ["l1=0.01", "groups=rows", "momentum=0.5"], ["momentum_buffer"]),
    ],
)
def test_the_command_line_takes_it_as_optimizer(name, options, kept, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    quiet = ["max_steps=4", "limit_val_batches=0", "enable_progress_bar=false", "enable_model_summary=false"]
    arguments = [f"--trainer.{word}" for word in ["accelerator=cpu", "devices=1", "logger=false", *quiet]]
    arguments += ["--trainer.callbacks+=MaskUpdater", "--trainer.callbacks.density=0.25", "--lr_scheduler=StepLR"]
    arguments += [f"--optimizer=lightning_sparse.optim.{name}", "--optimizer.lr=0.05", "--lr_scheduler.step_size=9"]
    arguments += [f"--optimizer.{option}" for option in options]
    model = f"{BoringModel.__module__}.{BoringModel.__name__}"
    monkeypatch.setattr(sys, "argv", ["lightning-sparse", "fit", f"--model={model}", *arguments])
    cli.main()
    stored = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)["optimizer_states"][0]
    assert stored["param_groups"][0]["lr"] == 0.05
    row = stored["state"][0]
    assert {key: list(row[key].shape) for key in kept} == {key: [16] for key in kept}  # a quarter of 64
    assert row["mask"].numel() == 8
