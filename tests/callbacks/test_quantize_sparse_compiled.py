"""QuantizeSparse with compiled layers."""

import pytest
import torch
from grids import fit
from helpers import ByHand, Net, weights

from lightning_sparse import MaskUpdater, QuantizeSparse


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's, of hooks of modules that compile themselves
@pytest.mark.parametrize("by_hand", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_layers_see_the_grid_too(inside, by_hand):
    ends = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = (type("Manual", (TwoSteps, Net), {}) if by_hand else Net)("sgd")  # which does not enlarge last bits
        if compiled and inside:
            model.net.compile(backend="eager")
        elif compiled:
            model.net = torch.compile(model.net, backend="eager")
        quantize, run = fit(model, MaskUpdater("rigl", 0.5), quantize=QuantizeSparse(3, at=1), max_epochs=2)
        ends.append((weights(model), quantize.quantization, run.callback_metrics["val_loss"]))
    plain = {name.replace("_orig_mod.", ""): value for name, value in ends[1][0].items()}
    for name, value in ends[0][0].items():  # compiled code rounds by torch's own kernel, which differs in the last bit
        torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-3)
    assert ends[0][1].layers == ends[1][1].layers
    for place, known in ends[0][1].ranges.items():
        assert ends[1][1].ranges[place].scale == pytest.approx(known.scale, rel=1e-3)
    torch.testing.assert_close(ends[0][2], ends[1][2], rtol=1e-3, atol=0)


class TwoSteps(ByHand):
    """Two optimizer steps a batch."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        super().training_step(batch, batch_idx)
