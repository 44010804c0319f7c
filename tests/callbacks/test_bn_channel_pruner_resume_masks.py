"""Going on with masks beside channels: zeros that are held, what is counted and what is logged."""

import pytest
from helpers import same, saver, state_tensors, stateful, trainer, weights
from lightning.pytorch.loggers.logger import Logger
from pruned import net, pruner

from lightning_sparse import STR, DensityLogger, MaskUpdater, RigL


class Lines(Logger):
    """What a DensityLogger logs, by step."""

    name, version = "lines", "0"

    def __init__(self):
        super().__init__()
        self.found = {}

    def log_hyperparams(self, *_): ...

    def log_metrics(self, metrics, step=None):
        if "epoch" not in metrics:  # what Lightning logs itself
            self.found[step] = dict(metrics)


def run(folder, algorithm, start=None, **pruning):
    """Three epochs of six steps of two batches; channels leave after the first two; a checkpoint after each step."""
    cut, masks, lines = pruner(0.4, at=[1, 2], **pruning), MaskUpdater(algorithm, 0.25), Lines()
    callbacks = [cut, masks, DensityLogger(1), saver(folder, 1)]
    settings = {"accumulate_grad_batches": 2, "logger": lines, "log_every_n_steps": 1}
    fit = trainer(callbacks, max_epochs=3, enable_checkpointing=True, **settings)
    model = net(seed=1 if start is None else 7)
    fit.fit(model, stateful(shuffle=True), ckpt_path=start)
    left = {**weights(model), **state_tensors(fit.optimizers[0]), **{f"mask {n}": m for n, m in masks.masks.items()}}
    return left, [(row.epoch, row.step, row.channels) for row in cut.history.cuts], lines.found


@pytest.mark.parametrize(
    ("algorithm", "shrink", "steps"),
    [
        (STR(every=2, stop=10), "end", (7, 9)),  # between the first cut and the last update
        (STR(every=2, stop=10), "live", (7,)),
        (RigL(every=3, stop=1.0), "live", (6, 12)),  # the last steps of epochs: the cut comes after the checkpoint
        (RigL(every=3, stop=1.0), "end", (6, 13)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_and_masks_and_what_is_said_of_them_go_on_bit_for_bit(algorithm, shrink, steps, tmp_path):
    left, cuts, lines = run(tmp_path, algorithm, shrink=shrink)
    assert [(epoch, step) for epoch, step, _ in cuts] == [(1, 6), (2, 12)]
    for step in steps:
        start = tmp_path / f"step={step}.ckpt"
        again, same_cuts, same_lines = run(tmp_path, algorithm, start, shrink=shrink)
        assert same(again, left)
        assert same_cuts == cuts
        assert same_lines == {at: line for at, line in lines.items() if at >= step}
        assert min(same_lines) == step
