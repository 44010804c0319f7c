"""Latent weights inside a Trainer."""

import copy
import pickle

import pytest
import torch
from helpers import DENSITY, LIVE, Net, Recorder, body, loader, net, same, saver, stateful, trainer, weights
from latents import LATENT, SETTLING, close
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F

from lightning_sparse import L0, STR, DensityLogger, MaskUpdater
from lightning_sparse.optim import MaskedAdamW

pytestmark = pytest.mark.filterwarnings("ignore:.*before the final density.*")  # weights that stay latent
OUTCOME = {"str": STR(every=3, stop=15, start=-3.0), "l0": L0(every=3, begin=0, stop=15, lr=0.3, strength=0.05)}


RAMPED = "l0"


def fitted(algorithm, density=DENSITY, callbacks=(), model=None, data=None, **settings):
    updater, model = MaskUpdater(algorithm, density), model or net()
    fit = trainer([updater, *callbacks], **{"max_epochs": 2, **settings})
    fit.fit(model, loader() if data is None else data, *([loader(8, 8)] if "val_check_interval" in settings else []))
    return updater, model, fit


def dead(model, updater):
    return sum(int(model.state_dict()[name][~mask].count_nonzero()) for name, mask in updater.masks.items())


# ---- Without a density, and with all of it


@pytest.mark.parametrize("name", OUTCOME)
def test_a_density_that_is_left_open_is_an_outcome_and_is_logged(name, tmp_path, caplog):
    caplog.set_level("INFO")
    logged = []

    class Kept(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.extend([metrics["density"]] if "density" in metrics else [])

    updater, model, _ = fitted(OUTCOME[name], None, [DensityLogger(every=1)], logger=Kept(tmp_path))
    assert 0 < updater.density() < 0.95
    assert updater.plan.density == 1.0
    assert "2,128 of 2,128 weights live (100.00%)" in caplog.text
    assert (logged[0], logged[-1]) == (1.0, pytest.approx(updater.density()))
    assert dead(model, updater) == 0
    assert all(bool(mask.any()) for mask in updater.masks.values())


@pytest.mark.parametrize("name", LATENT)
def test_a_density_of_one_changes_not_a_bit(name):
    _, model, _ = fitted(LATENT[name], 1.0, model=net(dropout=0.25), data=loader(shuffle=True))
    after = torch.rand(3)
    plain = net(dropout=0.25)
    trainer([], max_epochs=2).fit(plain, loader(shuffle=True))
    assert same(weights(model), weights(plain))
    assert torch.equal(after, torch.rand(3))


# ---- One run after another, checkpoints, copies


@pytest.mark.parametrize("name", SETTLING)
def test_a_second_fit_goes_on_with_the_masks_that_have_settled(name):
    updater, model, _ = fitted(SETTLING[name])
    masks, recorder = {k: m.clone() for k, m in updater.masks.items()}, Recorder(updater)
    trainer([updater, recorder], max_epochs=1).fit(model, loader())
    assert same(masks, updater.masks)
    assert (recorder.leaks, recorder.last_leaks) == (0, 0)


@pytest.mark.parametrize("name", ["str", "topkast", "srste"])
def test_a_second_fit_goes_on_with_latent_weights(name):
    updater, model, _ = fitted(LATENT[name], max_epochs=1)
    recorder = Recorder(updater)
    before = weights(model)
    trainer([updater, recorder], max_epochs=1).fit(model, loader())
    assert (recorder.leaks, dead(model, updater)) == (0, 0)
    assert not same(before, weights(model))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
@pytest.mark.parametrize("name", LATENT)
def test_a_checkpoint_within_a_window_loads_in_plain_lightning(name, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 6:  # three steps, and one batch of the fourth
                trainer.save_checkpoint(tmp_path / "now.ckpt")
                shown.update(weights(pl_module))

    shown = {}
    fitted(LATENT[name], callbacks=[Save()], accumulate_grad_batches=2, max_epochs=1)
    plain, expected = net(seed=9), Net()
    fit = trainer([])
    fit.test(plain, loader(8, 16), ckpt_path=tmp_path / "now.ckpt", verbose=False)
    expected.load_state_dict(shown)
    assert same(weights(plain), shown)
    x, y = next(iter(loader(16, 16)))
    wanted = F.cross_entropy(expected.net(x), y)
    assert float(fit.callback_metrics["val_loss"]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert list(plain.net.state_dict()) == list(body().state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["str", RAMPED, "topkast", "srste"])
def test_a_copy_of_the_callback_in_mid_run_trains_on_by_itself(name, copied):
    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                twin.update(updater=copied(trainer.callbacks[0]), weights=weights(pl_module))

    twin = {}
    whole = fitted(LATENT[name], max_epochs=1)[1]
    updater, model, _ = fitted(LATENT[name], callbacks=[Copy()], max_epochs=1)
    assert same(weights(whole), weights(model)), "copying has changed the run"
    masks = {k: m.clone() for k, m in updater.masks.items()}
    other = net(seed=4)
    other.load_state_dict(twin["weights"])
    recorder = Recorder(twin["updater"])
    trainer([twin["updater"], recorder], max_steps=4).fit(other, loader())
    assert recorder.leaks == 0
    assert same(masks, updater.masks)
    assert same(weights(whole), weights(model))


@pytest.mark.parametrize("name", ["str", "l0", "srste"])
def test_a_resumed_run_with_masked_adamw_goes_on_bit_for_bit(name, tmp_path):
    class Masked(Net):
        def configure_optimizers(self):
            return MaskedAdamW(self.parameters(), lr=1e-2)

    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=5.ckpt", 5), (tmp_path / "step=10.ckpt", 6)):
        torch.manual_seed(seed)
        updater, model = MaskUpdater(SETTLING[name], DENSITY), Masked()
        fit = trainer([updater, saver(tmp_path, 5)], max_epochs=1, enable_checkpointing=True)
        fit.fit(model, stateful(), ckpt_path=start)
        ends.append(weights(model))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


# ---- What a Trainer does around steps


@pytest.mark.parametrize("name", LATENT)
def test_two_accumulated_batches_are_one_of_twice_the_size(name):
    one, first, _ = fitted(LATENT[name], data=loader(8))
    two, second, _ = fitted(LATENT[name], data=loader(4), accumulate_grad_batches=2)
    assert same(one.masks, two.masks)
    for key, value in weights(first).items():
        close(second.state_dict()[key], value, atol=2e-5)


@pytest.mark.parametrize("name", LATENT)
def test_clipping_sees_the_gradients_of_the_latent_weights(name):
    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(nn.utils.get_total_norm([w.grad for w in pl_module.parameters()]))

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if pl_module.net[4].weight.grad is not None:
                clipped.append(nn.utils.get_total_norm([w.grad for w in pl_module.parameters()]))

    norms, clipped = [], []
    fitted(LATENT[name], callbacks=[Norm()], gradient_clip_val=0.3)
    assert len(norms) == 24
    assert sum(float(n) > 0.3 for n in norms) >= 5
    penalties = 1e-2 if name in ("topkast", "srste") else 1e-5  # which are added after clipping
    assert all(float(n) <= 0.3 + penalties for n in clipped)


@pytest.mark.parametrize("name", LATENT)
def test_pure_bfloat16(name):
    updater = MaskUpdater(LATENT[name], DENSITY)
    recorder, model = Recorder(updater), net()
    trainer([updater, recorder], max_epochs=2, precision="bf16-true").fit(model, loader())
    assert recorder.leaks == 0
    assert recorder.moves >= 3
    assert all(w.dtype == torch.bfloat16 and bool(w.isfinite().all()) for w in model.parameters())
    if name in ("topkast", "srste"):
        assert all(counts == LIVE for counts in recorder.counts)


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "mean": lambda: WeightAveraging(),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
}


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler.*", "ignore:.*swa_model.*")
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("name", LATENT)
def test_averages_are_sparse_at_the_end(name, kind):
    updater, model, _ = fitted(LATENT[name], callbacks=[AVERAGES[kind]()], max_epochs=3, val_check_interval=5)
    assert dead(model, updater) == 0
    assert all(bool(w.isfinite().all()) for w in model.parameters())


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor.*")  # of torch's own making, where a hook breaks the graph
@pytest.mark.parametrize("name", ["str", "l0"])
def test_a_compiled_module_trains_in_a_trainer_as_a_plain_one(name):
    ends = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        torch._dynamo.reset()
        updater, model = MaskUpdater(LATENT[name], DENSITY), net()
        trainer([updater], max_steps=4).fit(wrap(model), loader(), loader(8, 8))
        ends.append((weights(model), updater.masks))
    assert same(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])


@pytest.mark.parametrize("name", LATENT)
def test_a_run_that_breaks_within_a_step_leaves_a_sparse_model(name):
    class Breaking(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            loss = closure()
            self.count += 1
            if self.count == 6:
                raise ArithmeticError
            super().step()
            return loss

    class Fragile(Net):
        def configure_optimizers(self):
            return Breaking(self.parameters(), lr=0.1)

    torch.manual_seed(1)
    updater, model = MaskUpdater(LATENT[name], DENSITY), Fragile()
    with pytest.raises(ArithmeticError):
        trainer([updater], max_epochs=1).fit(model, loader())
    assert updater.sparsifier.steps == 5
    assert dead(model, updater) == 0
