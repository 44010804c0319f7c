"""float16 with a gradient scaler: steps that it skips beside cuts."""

import pytest
import torch
from helpers import loader, same, saver, state_tensors, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from pruned import net, pruner, widths

from lightning_sparse import MaskUpdater, RigL

SKIPPED = list(range(0, 36, 3))  # the scale is too large at first, and again whenever two steps have been taken


def scaled():
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**34, growth_factor=2.0**24, backoff_factor=2.0**-24, growth_interval=2
    )
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


class Steps(Callback):
    """Which steps left every weight and every state as it was, and how wide the model was in each."""

    def __init__(self):
        self.still, self.widths, self.scales = [], [], []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()} | state_tensors(optimizer)
        self.before = {name: value.clone() for name, value in self.before.items()}
        self.widths.append(sum(widths(pl_module)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {n: p.detach() for n, p in pl_module.named_parameters()} | state_tensors(trainer.optimizers[0])
        if all(torch.equal(now[name], value) for name, value in self.before.items()):
            self.still.append(trainer.global_step - 1)
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def run(*callbacks, optimizer="sgd", seed=1, start=None, folder=None, penalty="subgradient", **when):
    cut, steps, model = pruner(0.5, penalty=penalty, **when), Steps(), net(optimizer, seed=seed)
    keeping = [saver(folder, 4)] if folder else []
    settings = {"max_epochs": 3, "enable_checkpointing": bool(folder), **scaled()}
    fit = trainer([steps, cut, *callbacks, *keeping], **settings)
    fit.fit(model, loader(), ckpt_path=start)
    return cut, model, steps, fit


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused"])
@pytest.mark.parametrize(
    ("when", "first"),
    [({"at": 1}, 12), ({"at_steps": [4]}, 4), ({"at_steps": [5]}, 5)],
    ids=["before a skipped step", "after a skipped step", "between steps that are taken"],
)
def test_a_step_that_is_skipped_beside_a_cut_changes_nothing(when, first, optimizer):
    cut, model, steps, _ = run(optimizer=optimizer, **when)
    assert steps.widths == [36] * first + [18] * (36 - first)
    assert steps.still == SKIPPED
    assert len(cut.history.cuts) == 1
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert steps.scales == [2.0**34 if step % 3 == 2 else 2.0**10 for step in range(36)]  # as without a cut


def test_a_run_goes_on_bit_for_bit_from_before_a_cut_and_a_step_that_is_skipped(tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=12.ckpt", 7)):
        _, model, _, fit = run(optimizer="adamw", folder=tmp_path, at=1, start=start, seed=seed)
        ends.append((weights(model), state_tensors(fit.optimizers[0])))
    assert all(same(left, right) for left, right in zip(*ends, strict=True))


class Moves(Callback):
    """Masks that moved by a step, dead weights that a forward pass would see."""

    def __init__(self, updater):
        self.updater, self.moved, self.leaks = updater, [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.masks, named = dict(self.updater.masks), dict(pl_module.named_parameters())
        self.leaks += sum(int((named[name].detach()[~mask] != 0).sum()) for name, mask in self.masks.items())

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.masks = {name: mask.clone() for name, mask in self.updater.masks.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not same(self.masks, dict(self.updater.masks)):
            self.moved.append(trainer.global_step - 1)


def test_masks_are_cut_and_move_around_skipped_steps():
    updater = MaskUpdater(RigL(every=2, stop=1.0), 0.5, allocation="uniform")
    moves = Moves(updater)
    _, _, steps, _ = run(updater, moves, at=[1, 2], penalty="proximal")
    assert moves.leaks == 0
    assert len(moves.moved) >= 5
    assert not set(moves.moved) & set(SKIPPED)
    assert updater.sparsifier.steps == 24
    assert steps.still == SKIPPED
    assert all(int(mask.sum()) == round(0.5 * mask.numel()) for mask in updater.masks.values())
