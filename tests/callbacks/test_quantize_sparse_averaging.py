"""QuantizeSparse beside WeightAveraging, which came with Lightning 2.6."""

import pytest
import torch
from grids import Seen, fit, layers, on_grid, zeros_are_the_masks
from helpers import Net, net
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn

from lightning_sparse import MaskUpdater


@pytest.mark.parametrize("first", [True, False])
def test_averages_are_of_floats_and_are_validated_on_the_grid(first):
    updater, seen, model = MaskUpdater("static", 0.25), Seen(), net("adamw")
    average, values = WeightAveraging(avg_fn=get_ema_avg_fn(0.9)), []

    class Look(Net):
        def validation_step(self, batch, batch_idx):
            values.append([m.weight.detach().clone() for m in layers(self).values()])
            super().validation_step(batch, batch_idx)

    model.__class__ = Look
    others = [updater, average] if first else [average, updater]
    quantize, _ = fit(model, seen, *others)
    shown = values[-1][1]
    assert on_grid(shown, 4)
    kept = average._average_model.module.net[4].weight.detach()
    assert not on_grid(kept, 4)
    assert torch.equal(model.net[4].weight, kept)
    by_hand = kept.clone()
    rows = (by_hand.abs().amax(1, keepdim=True) / 8).bfloat16().float()
    codes = (by_hand.abs() / torch.where(rows > 0, rows, torch.ones_like(rows))).round().clamp(1, 8)
    torch.testing.assert_close(shown, by_hand.sign() * codes * rows)  # the average, rounded
    zeros_are_the_masks(model, quantize, updater.masks)
