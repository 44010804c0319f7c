"""Latent weights where it is hard inside a Trainer: averages, loaded weights, runs that are too short."""

import warnings

import pytest
import torch
from helpers import DENSITY, Net, loader, net, trainer, weights
from latents import LATENT, SETTLING, close, start, train
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn

from lightning_sparse import L0, STR, MaskUpdater, RigL

pytestmark = pytest.mark.filterwarnings("ignore:.*before the final density.*")  # weights that stay latent
KINDS = ["str", "l0", "topkast", "srste"]


def far(model, average):
    """The largest distance of any weight from its average."""
    averages = {name.removeprefix("module."): value for name, value in average.named_parameters()}
    return max(float((averages[name] - value).detach().abs().max()) for name, value in model.named_parameters())


@pytest.mark.parametrize("name", KINDS)
def test_the_average_is_what_is_left_in_the_model_at_the_end(name):
    average, model = EMAWeightAveraging(decay=0.7), net()
    trainer([average, MaskUpdater(LATENT[name], DENSITY)], max_epochs=2).fit(model, loader())
    assert far(model, average._average_model) == 0


@pytest.mark.parametrize("name", SETTLING)
def test_a_state_that_has_settled_goes_into_a_new_engine_with_its_weights(name):
    model, optimizer, engine = start(SETTLING[name])
    train(model, optimizer, 9)
    other, _, again = start(SETTLING[name])
    other.load_state_dict(model.state_dict())
    again.load_state_dict(engine.state_dict())
    for key, value in weights(model).items():
        close(other.get_parameter(key), value)


def test_validation_within_a_window_sees_the_average_under_l0():
    class Look(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            self.before = pl_module.net[4].weight.detach().clone()

        def on_validation_batch_end(self, trainer, pl_module, *_):
            assert torch.equal(pl_module.net[4].weight, self.before)

    settings = {"accumulate_grad_batches": 2, "val_check_interval": 3, "num_sanity_val_steps": 0}
    callbacks = [EMAWeightAveraging(decay=0.9), MaskUpdater(LATENT["l0"], DENSITY), Look()]
    trainer(callbacks, max_epochs=1, **settings).fit(net(), loader(), loader(8, 8))


class Normed(Net):
    """With batch norm, for which SWA passes through the data once more; Lightning takes a step even there."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm2d(6))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_epoch_start(self):
        if self.current_epoch == 3:
            self.trainer.optimizers[0].param_groups[0]["lr"] = 0.0


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler.*", "ignore:.*swa_model.*")
@pytest.mark.parametrize("name", ["rigl", *KINDS])
def test_swa_leaves_its_average_in_a_model_with_batch_norm(name):
    torch.manual_seed(0)
    algorithm = RigL(every=3, stop=1000) if name == "rigl" else LATENT[name]
    average, model = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1), Normed()
    trainer([average, MaskUpdater(algorithm, DENSITY)], max_epochs=3).fit(model, loader())
    assert far(model, average._average_model) < 1e-6


@pytest.mark.parametrize("name", ["rigl", *LATENT])
def test_weights_that_were_loaded_between_two_fits_are_those_that_train_on(name):
    class Still(Callback):
        def on_train_start(self, trainer, pl_module):
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.0

    updater, model = MaskUpdater(RigL(every=3, stop=1000) if name == "rigl" else LATENT[name], DENSITY), net()
    trainer([updater], max_epochs=1).fit(model, loader())
    best = {key: value * 0.5 for key, value in model.state_dict().items()}
    model.load_state_dict(best)
    trainer([updater, Still()], max_steps=1).fit(model, loader())
    torch.testing.assert_close(weights(model)["net.4.weight"], best["net.4.weight"], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("algorithm", [STR(every=3, stop=1000), L0(every=3, begin=0, stop=1000)], ids=["str", "l0"])
def test_a_run_that_is_too_short_for_the_density_is_told_so(algorithm):
    with pytest.warns(UserWarning, match="ends at step 12, before the final density at stop=1000; give a smaller"):
        trainer([MaskUpdater(algorithm, DENSITY)], max_epochs=1).fit(net(), loader())


@pytest.mark.parametrize("density", [None, 1.0])
@pytest.mark.parametrize("name", ["str", "l0"])
def test_nothing_is_too_short_where_no_density_is_steered_to(name, density):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*before the final density.*")
        trainer([MaskUpdater(LATENT[name], density)], max_epochs=1).fit(net(), loader())


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor.*")  # of torch's own making, where a hook breaks the graph
def test_a_module_that_was_compiled_and_called_before_sees_samples_and_centres_in_a_trainer():
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.compiled = [torch.compile(self.net, backend="eager")]
            self.compiled[0](torch.zeros(1, 2, 6, 6))

        def training_step(self, batch, batch_idx):
            sampled.append(updater.sparsifier.params["net.4.weight"].noisy)
            return self.compiled[0](batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            rested.append(not updater.sparsifier or not updater.sparsifier.params["net.4.weight"].noisy)
            self.compiled[0](batch[0])

    torch._dynamo.reset()
    sampled, rested, updater = [], [], MaskUpdater(LATENT["l0"], DENSITY)
    settings = {"accumulate_grad_batches": 2, "val_check_interval": 1}
    trainer([updater], max_epochs=1, limit_train_batches=4, **settings).fit(Compiled(), loader(), loader(8, 8))
    assert len(sampled) == 4 <= len(rested)
    assert all(sampled)
    assert all(rested)
