"""With other callbacks and strategies: masks, penalties, averages, monitors, loggers, several processes."""

import csv
import pickle
from copy import deepcopy

import pytest
import torch
from helpers import loader, same, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pruned import CHANNELS, Net, fit, net, pruner, widths

from lightning_sparse import GMP, NM, SET, STR, DensityLogger, GlobalMagnitude, MaskUpdater, Regularizer, RigL, TopKAST
from lightning_sparse.channels.restore import ShapeFollowing


class Counts(Callback):
    """Live weights and sizes by layer, after each step, and dead weights that a forward pass saw."""

    def __init__(self, updater):
        self.updater, self.found, self.leaks = updater, [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        named = dict(pl_module.named_parameters())
        for name, mask in self.updater.masks.items():
            self.leaks += int((named[name].detach()[~mask] != 0).sum())
        self.found.append({name: (int(m.sum()), m.numel()) for name, m in self.updater.masks.items()})


@pytest.mark.parametrize("algorithm", [SET(every=3, stop=1.0), RigL(every=3, stop=1.0), TopKAST(every=3)], ids=str)
def test_masks_lose_the_same_channels_and_keep_their_shares_exactly(algorithm):
    updater = MaskUpdater(algorithm, 0.5, allocation="uniform")
    counts = Counts(updater)
    model, _, _ = fit(pruner(0.5, at=[1, 2]), updater, counts)
    assert counts.leaks == 0
    assert counts.found[0] != counts.found[12] != counts.found[24]
    for step in (12, 24, 35):
        for name, (live, size) in counts.found[step].items():
            assert size == dict(model.named_parameters())[name].numel() or step < 24
            assert live == round(0.5 * size), (step, name)
    masks, named = updater.masks, dict(model.named_parameters())
    assert all(not bool(named[name][~mask].any()) for name, mask in masks.items())


def test_a_ramp_goes_on_to_its_density_over_channels_that_are_left():
    updater = MaskUpdater(GMP(every=3, stop=30), 0.25, allocation="uniform")
    fit(pruner(0.5, at=[1, 2]), updater)
    live, size = (sum(f(m) for m in updater.masks.values()) for f in (lambda m: int(m.sum()), torch.numel))
    assert live == sum(round(0.25 * m.numel()) for m in updater.masks.values())
    assert live / size == pytest.approx(0.25, abs=0.01)
    assert updater.plan.size == size


def test_latent_weights_lose_the_same_channels():
    class Shapes(Counts):
        def on_train_batch_end(self, trainer, pl_module, *others):
            p = self.updater.sparsifier.params["block.conv1.weight"]
            assert p.latent.shape == p.weight.shape == p.mask.shape == pl_module.block.conv1.weight.shape
            self.seen = p.latent.shape

    updater = MaskUpdater(STR(every=3, stop=100))
    counts = Shapes(updater)
    model, _, _ = fit(pruner(0.5), updater, counts)
    assert counts.leaks == 0
    assert counts.seen[0] == model.block.conv1.out_channels < 8


def test_weights_to_rewind_to_lose_the_same_channels():
    """Lottery tickets: after the pruning at step 30, weights are those of the start, of channels that are left."""

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            self.first = pl_module.block.conv1.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *others):
            if trainer.global_step == 30:
                self.back = pl_module.block.conv1.weight.detach().clone()

    look, cut = Look(), pruner(0.5)
    updater = MaskUpdater(GlobalMagnitude(stop=30, rewind="init"), 0.5)
    fit(cut, updater, look)
    mask, kept = updater.masks["block.conv1.weight"], cut.recipe.indices()["block.conv1.weight"]
    assert torch.equal(look.back[mask], look.first[kept[0]][:, kept[1]][mask])


def test_a_pattern_that_the_cut_would_break_refuses_it_and_a_multiple_of_it_is_fine():
    both = [MaskUpdater(RigL(every=3, stop=1.0), pattern=NM(2, 4), include=["block*"])]
    model = net()
    with pytest.raises(ValueError, match="would lose its pattern"):
        fit(pruner(0.6, scope="layer"), *both, model=model)
    assert widths(model) == (16, 8, 12)
    updater = MaskUpdater(RigL(every=3, stop=1.0), pattern=NM(2, 4), include=["block*"])
    model, _, _ = fit(pruner(0.5, scope="layer", round_to=4), updater)
    assert widths(model)[:2] == (8, 4)
    assert all(float(mask.float().mean()) == 0.5 for mask in updater.masks.values())


def test_a_regularizer_goes_on_with_smaller_weights():
    regularizer = Regularizer("l1", 1e-3)
    model, _, _ = fit(pruner(0.5), regularizer)
    assert sum(widths(model)) == 18
    assert regularizer.state_dict()["steps"] == [36]


def test_gammas_reach_exact_zero_by_the_proximal_step_only():
    zeros = {}
    for penalty in ("subgradient", "proximal"):
        model, _, _ = fit(pruner(1.0, penalty=penalty, l1=0.03, at=[3]))
        gammas = torch.cat([module.weight.detach() for module in model.modules() if hasattr(module, "momentum")])
        zeros[penalty] = int((gammas == 0).sum())
    assert zeros["subgradient"] == 0
    assert zeros["proximal"] >= 10


def test_the_subgradient_is_that_of_network_slimming():
    """By hand: one step of plain SGD with and without; they differ by lr * l1 * sign(gamma)."""

    class Plain(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    runs = []
    for penalty in ("subgradient", None):
        torch.manual_seed(2)
        model = Plain()
        fit(pruner(1.0, penalty=penalty, l1=0.5), model=model, max_steps=1, max_epochs=-1)
        runs.append(weights(model))
    for name in runs[0]:
        difference = runs[1][name] - runs[0][name]
        expected = 0.1 * 0.5 if name.endswith(("bn.weight", "bn1.weight", "bn2.weight", "bn3.weight")) else 0.0
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(difference, torch.full_like(difference, expected), rtol=0, atol=1e-7)


def test_the_penalty_ends_with_the_last_moment():
    class Values(Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.found.append("BNChannelPruner/penalty" in trainer.callback_metrics)

    cut, values = pruner(0.5), Values()
    fit(cut, values, log_every_n_steps=1, max_epochs=2)
    assert cut.pull.engines == []
    assert cut.pull.state_dict()["steps"] == [[12]]
    assert values.found[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_automatic_strength_is_prunetrains(accumulate):
    """By hand: lambda = r * loss / (lasso * (1 - r)), over output and input channels of weights; neither the inputs of
    the first layer nor the outputs of the last one count."""
    model, ratio = net(), 0.25
    with torch.no_grad():
        images, labels = next(iter(loader()))
        w = {name: value.double() for name, value in deepcopy(model).named_parameters()}
        loss = float(torch.nn.functional.cross_entropy(deepcopy(model)(images), labels))
        lasso = 0.0
        for name in ("stem.weight", "block.conv1.weight", "block.conv2.weight", "hidden.weight"):
            lasso += sum(float(row.square().sum().sqrt()) for row in w[name])
        for name in ("block.conv1.weight", "block.conv2.weight", "hidden.weight", "head.weight"):
            lasso += sum(float(column.square().sum().sqrt()) for column in w[name].transpose(0, 1))
    cut = pruner(0.5, penalty="group_lasso", l1="auto", ratio=ratio)
    fit(cut, model=model, accumulate_grad_batches=accumulate)
    assert cut.pull.state_dict()["strength"] == pytest.approx(ratio * loss / (lasso * (1 - ratio)), rel=1e-4)


def test_a_group_lasso_pulls_channels_and_not_only_gammas():
    norms = []
    for penalty in (None, "group_lasso"):
        cut = pruner(1.0, penalty=penalty, l1=0.02, at=[2])
        model, _, _ = fit(cut, max_epochs=2)
        norms.append(float(model.block.conv1.weight.detach().flatten(1).norm(dim=1).sum()))
    assert norms[1] < 0.8 * norms[0]


class Judged(Net):
    losses = (0.1, 0.2, 0.9, 0.5)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.losses[self.current_epoch])


def test_the_best_model_is_one_of_the_final_width_where_monitors_are_reset(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss")
    fit(
        pruner(0.5, at=2, reset_monitors=True),
        keep,
        model=Judged(),
        val=loader(4, 4),
        max_epochs=4,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    best = torch.load(keep.best_model_path, weights_only=True)
    assert best["epoch"] == 3
    assert best["state_dict"]["bn.weight"].shape[0] < 16


def test_without_a_reset_the_start_says_that_the_best_model_may_be_a_larger_one(tmp_path):
    stop = EarlyStopping("val_loss", patience=9)
    with pytest.warns(UserWarning, match=r"EarlyStopping finds may be a larger one(.)*reset_monitors=True"):
        fit(pruner(0.5), stop, model=Judged(), val=loader(4, 4), num_sanity_val_steps=0)


def test_channels_and_flops_are_logged_by_layer(tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version="0")
    fit(pruner(0.5), DensityLogger(), logger=logger, log_every_n_steps=4, max_epochs=2)
    with (tmp_path / "csv" / "0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["BNChannelPruner/channels/stem"]]
    first, last = rows[0], rows[-1]
    layers = ("stem", "block.conv1", "hidden")
    assert sum(float(first[f"BNChannelPruner/channels/{name}"]) for name in layers) == CHANNELS
    assert sum(float(last[f"BNChannelPruner/channels/{name}"]) for name in layers) == CHANNELS / 2
    assert float(first["BNChannelPruner/flops_share"]) == 1.0
    assert 0.1 < float(last["BNChannelPruner/flops_share"]) < 0.5


def test_densities_and_channels_are_logged_together(tmp_path):
    run = [MaskUpdater(RigL(every=3, stop=1.0), 0.5, allocation="uniform"), DensityLogger()]
    _, trained, _ = fit(pruner(0.5), *run, logger=CSVLogger(tmp_path), log_every_n_steps=4)
    assert float(trained.callback_metrics["density"]) == pytest.approx(0.5, abs=0.01)
    assert float(trained.callback_metrics["BNChannelPruner/channels"]) == 0.5


class Copying(Callback):
    def __init__(self, cut):
        self.cut = cut

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.copies = [deepcopy(self.cut), pickle.loads(pickle.dumps(self.cut))]


def test_it_travels_as_a_copy_and_through_pickle():
    cut = pruner(0.5)
    watch = Copying(cut)
    fit(cut, watch)
    for copy in watch.copies:
        assert copy.done == 1
        model, _, _ = fit(copy)
        assert sum(widths(model)) == 18


def test_a_module_takes_smaller_weights_where_it_was_told_to(tmp_path):
    class Following(ShapeFollowing, Net):
        pass

    small, _, _ = fit(pruner(0.5), folder=tmp_path)
    plain, attached, following = net(seed=4), net(seed=4), Following()
    pruner(0.5).attach(attached)
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain.load_state_dict(small.state_dict())
    for model in (attached, following, Following.load_from_checkpoint(tmp_path / "step=36.ckpt")):
        if model is not following:
            model.load_state_dict(small.state_dict())
        following.load_state_dict(small.state_dict())
        assert same(weights(model), weights(small))
        assert model(torch.zeros(2, 2, 6, 6)).shape == (2, 5)


def test_another_model_is_cut_by_itself():
    cut = pruner(0.5)
    fit(cut)
    model, _, _ = fit(cut, model=net(seed=9, width=24))
    assert sum(widths(model)) == (24 + 8 + 12) // 2


def test_no_hook_and_no_method_is_left_behind():
    class Failing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("stop here")

    for others in ([], [Failing()]):
        model, cut = net(), pruner(0.5)
        run = trainer([cut, *others], max_epochs=2)
        if others:
            with pytest.raises(RuntimeError, match="stop here"):
                run.fit(model, loader())
        else:
            run.fit(model, loader())
        optimizer = run.optimizers[0]
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not model._load_state_dict_pre_hooks
        assert not {"training_step", "forward"} & set(vars(model))
