"""FLOPs that a DensityLogger logs beside a BNChannelPruner, which runs the model more often and makes it smaller."""

import pytest
from helpers import loader, trainer
from lightning.pytorch import Callback
from pruned import net, pruner

from lightning_sparse import DensityLogger, MaskUpdater, RigL

PIXELS = {"stem": 36, "block.conv1": 36, "block.conv2": 36, "hidden": 1, "head": 1}  # 6 x 6, padded


class ByHand(Callback):
    """What is logged, beside live multiply-adds of each layer as it is, of all that it would have without masks."""

    def __init__(self, updater):
        self.updater, self.pairs = updater, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        masks = {name.removesuffix(".weight"): mask for name, mask in self.updater.masks.items()}
        live = sum(PIXELS[name] * int(mask.sum()) for name, mask in masks.items())
        whole = sum(PIXELS[name] * mask.numel() for name, mask in masks.items())
        self.pairs.append((float(trainer.callback_metrics["flops_share"]), live / whole))


@pytest.mark.parametrize(
    ("first", "when"), [("pruner", {"at": [1, 2]}), ("logger", {"at_steps": [1, 15]})], ids=["pruner", "logger"]
)
def test_they_are_of_the_model_as_it_is_in_every_step(when, first):
    """Whichever of the two is named first."""
    updater = MaskUpdater(RigL(every=3, stop=1.0), 0.5, allocation="erk")
    cut, logger, by_hand = pruner(0.4, **when), DensityLogger(1), ByHand(updater)
    callbacks = [cut, updater, logger] if first == "pruner" else [logger, cut, updater]
    fit = trainer([*callbacks, by_hand], max_epochs=3, log_every_n_steps=1)
    fit.fit(net(), loader())
    assert len(cut.history.cuts) == 2
    logged, expected = zip(*by_hand.pairs, strict=True)
    assert logged == pytest.approx(expected, rel=1e-6)
