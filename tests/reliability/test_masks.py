"""Failure modes 19 to 30: what masks are made for, and what they must not touch."""

import pytest
import torch
from helpers import DENSITY, LIVE, TOTAL, Net, loader, net, same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning
from modes import mode
from runs import MOVING, RANDOM, leaks, run
from torch import nn

from lightning_sparse import GMP, SET, ConstantSchedule, DensityLogger, MaskUpdater, RigL


@mode(19, "the number of live weights drifts", right="exact in every layer after every step, or along the schedule")
@pytest.mark.parametrize("algorithm", [MOVING, RANDOM], ids=lambda a: type(a).__name__)
def test_every_layer_keeps_its_count(algorithm):
    fit = run(algorithm)
    assert fit.recorder.moves >= 5
    assert fit.recorder.counts == [LIVE] * 12


@mode(19)
def test_a_ramp_meets_its_schedule_at_every_step():
    fit = run(GMP(every=3, stop=9))
    expected = [round(TOTAL + (2128 - TOTAL) * (1 - min(n // 3 * 3, 9) / 9) ** 3) for n in range(1, 13)]  # cubic
    assert [sum(counts.values()) for counts in fit.recorder.counts] == expected
    assert fit.recorder.counts[-1] == LIVE


@mode(20, "density 1", right="bit for bit the run without the callback; a layer that is given density 1 stays dense")
@pytest.mark.parametrize("algorithm", [MOVING, RANDOM, GMP(every=3)], ids=lambda a: type(a).__name__)
def test_density_one_changes_nothing(algorithm):
    ends = []
    for callbacks in ([], [MaskUpdater(algorithm, 1.0)]):
        model, fit = net("adamw", 0.25), trainer(callbacks, max_epochs=1)
        fit.fit(model, loader(shuffle=True))
        ends.append((weights(model), state_tensors(fit.optimizers[0]), {"rng": torch.get_rng_state()}))
    assert all(same(left, right) for left, right in zip(*ends, strict=True))


@mode(20)
def test_a_layer_of_density_one_stays_dense():
    fit = run(masks={"density": {"net.4": 1.0, "*": 0.25}})
    assert fit.updater.densities()["net.4.weight"] == 1.0
    assert bool(fit.model.net[4].weight.all())
    assert fit.recorder.moves >= 3


class Small(Net):
    """Layers of 3 x 2 and 2 x 1 weights in front of the classifier's classes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2), nn.Linear(2, 1), nn.Linear(1, 5))


@mode(
    21,
    "nothing to drop, layers of one or two weights, fewer dead weights than are to be dropped",
    right="bounded, exact, no crash",
)
@pytest.mark.parametrize("density", [4 / 151, 0.97])
@pytest.mark.parametrize("kind", [RigL, SET])
def test_updates_stay_within_what_a_layer_has(kind, density):
    torch.manual_seed(1)
    fit = run(kind(every=1, stop=12, fraction=ConstantSchedule(0.9)), model=Small(), masks={"density": density})
    totals = {sum(counts.values()) for counts in fit.recorder.counts}
    assert totals == {round(density * 151)}  # 144 + 2 + 5
    assert fit.recorder.counts == [fit.recorder.counts[0]] * 12
    assert min(fit.recorder.counts[0].values()) >= 1
    assert fit.recorder.leaks == 0


@mode(
    22,
    "a grown weight is 0 until it learns: fewer weights are non-zero than live",
    right="both are logged: `density` and `nonzero_density`",
)
def test_live_and_nonzero_shares_are_both_logged():
    updater, logger = MaskUpdater(RigL(every=6, stop=12, fraction=ConstantSchedule(0.5)), DENSITY), DensityLogger(1)
    model, fit = net(), trainer([updater, logger], max_epochs=1)
    fit.fit(model, loader())  # its last step grew weights
    nonzero = sum(int(model.get_parameter(name).count_nonzero()) for name in LIVE)
    assert nonzero < TOTAL
    assert float(fit.callback_metrics["density"]) == pytest.approx(TOTAL / 2128)
    assert float(fit.callback_metrics["nonzero_density"]) == pytest.approx(nonzero / 2128)


@mode(23, "the callback draws from the global random state", right="it never does: data and dropout stay the user's")
def test_the_global_random_state_is_left_alone():
    states = []
    for callbacks in ([], [MaskUpdater(RANDOM, DENSITY)]):
        trainer(callbacks, max_epochs=1).fit(net(dropout=0.25), loader(shuffle=True))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Tied(Net):
    """Two layers share a weight."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.ReLU(), nn.Linear(72, 72), nn.Linear(72, 5))
        self.net[3].weight = self.net[1].weight


@mode(24, "tied weights are masked twice", right="once, under one name, with one budget")
def test_tied_weights_have_one_mask():
    torch.manual_seed(1)
    fit = run(model=Tied(), masks={"allocation": "uniform"})
    assert {name: int(mask.sum()) for name, mask in fit.updater.masks.items()} == {
        "net.1.weight": 72 * 72 // 4,
        "net.4.weight": 72 * 5 // 4,
    }
    assert fit.model.net[3].weight is fit.model.net[1].weight
    assert leaks(fit.model, fit.updater.masks) == 0
    assert fit.recorder.moves >= 5


@mode(25, "lazy layers have no weights yet", right="refused with their names and the way out")
def test_lazy_layers_are_named():
    model = net()
    model.net[4] = nn.LazyLinear(20)
    with pytest.raises(ValueError, match=r"lazy .*net\.4\.weight.*run one batch"):
        trainer([MaskUpdater("rigl", DENSITY)], max_epochs=1).fit(model, loader())


class Late(Net):
    """Layers are made in configure_model."""

    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = net().net


@mode(26, "layers made in `configure_model`", right="they are found: targets are chosen when training starts")
def test_layers_made_in_configure_model_are_sparse():
    fit = run(model=Late())
    assert fit.recorder.counts[-1] == LIVE
    assert fit.recorder.leaks == 0


class Unfreeze(BaseFinetuning):
    """Lightning's own way: the convolution and the first linear layer join in the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze([pl_module.net[0], pl_module.net[4]])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.net[0], pl_module.net[4]], optimizer, lr=0.1)


@mode(
    27,
    "layers frozen at the start and unfrozen later stay dense",
    right="they become sparse when they become trainable: the largest weights stay, the density is that of the rest",
)
def test_layers_that_are_unfrozen_become_sparse():
    model = net()
    head = list(model.net[6].parameters())
    model.configure_optimizers = lambda: torch.optim.SGD(head, lr=0.1, momentum=0.9, weight_decay=1e-2)
    fit = run(MOVING, "sgd", Unfreeze(), model=model, max_epochs=3)
    # by hand: ERK's 116 / 130 of round(0.25 * 2028) = 507 are 452.4, and 14 / 130 of it 54.6
    assert fit.recorder.counts[11] == {"net.6.weight": 25}
    assert fit.recorder.counts[12] == {"net.6.weight": 25, "net.0.weight": 55, "net.4.weight": 452}
    assert all(sum(counts.values()) == TOTAL for counts in fit.recorder.counts[12:])
    assert (fit.recorder.leaks, fit.recorder.state_leaks, leaks(fit.model, fit.updater.masks)) == (0, 0, 0)
    assert all(fit.recorder.moved_at(step) for step in (14, 16, 18))


class Thaw(Callback):
    """By hand: frozen in every fit's beginning, trainable from the thirteenth step on."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.net[:6].requires_grad_(False)

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.net[:6].requires_grad_(trainer.global_step >= 12)


@mode(27)
def test_a_run_resumed_after_layers_were_unfrozen_ends_as_the_uninterrupted_one(tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=18.ckpt", 5)):
        model = net("adamw", 0.25, seed=seed)
        others = [Thaw(), saver(tmp_path, 6)]
        data = stateful(shuffle=True)
        fit = run(MOVING, "", *others, model=model, data=data, start=start, max_epochs=2, enable_checkpointing=True)
        ends.append((fit.updater.masks, weights(model), state_tensors(fit.trainer.optimizers[0])))
    assert len(ends[1][0]) == 3
    assert all(same(left, right) for left, right in zip(*ends, strict=True))


@mode(28, "no weight matches the globs", right="an error that lists the candidates")
def test_a_glob_that_fits_nothing_lists_the_candidates():
    with pytest.raises(ValueError, match=r"encoder\.\*.* matches no weight; candidates: net\.0\.weight, net"):
        run(masks={"include": ["encoder.*"]})


@mode(29, "the same callback on another model", right="new masks, those of a new callback")
def test_another_model_gets_masks_of_its_own():
    updater = MaskUpdater(MOVING, DENSITY)
    other = net(seed=2)
    trainer([updater], max_epochs=1).fit(net(), loader())
    trainer([updater], max_epochs=1).fit(other, loader())
    fresh = run(model=net(seed=2))
    assert same(updater.masks, fresh.updater.masks)
    assert same(weights(other), weights(fresh.model))


@mode(30, "`max_epochs=0`, `limit_train_batches=0`", right="no weight is touched")
@pytest.mark.parametrize("settings", [{"max_epochs": 0}, {"max_epochs": 1, "limit_train_batches": 0}], ids=str)
def test_a_fit_that_trains_nothing_touches_nothing(settings):
    model = net()
    before = weights(model)
    trainer([MaskUpdater("rigl", DENSITY)], **settings).fit(model, loader())
    assert same(weights(model), before)
