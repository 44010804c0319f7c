"""Modules that keep activations from one step to the next."""

import pytest
import torch
from pruned import Net, fit, pruner, widths
from torch.nn import functional as F


class Keeping(Net):
    """What the block puts out is kept; a model with a memory adds what it has kept of the step before."""

    memory, kept = False, None

    def forward(self, x):
        x = self.block(F.relu(self.bn(self.stem(x))))
        if self.memory and self.kept is not None:
            x = x + 0.1 * self.kept
        self.kept = x.detach()
        return self.head(F.relu(self.bn3(self.hidden(x.mean((2, 3))))))


def made(memory):
    torch.manual_seed(2)
    model = Keeping()
    model.memory = memory
    return model


@pytest.mark.parametrize("when", [{"at": [1, 2]}, {"at_steps": [2, 5]}], ids=str)
def test_channels_that_the_next_step_reads_stay_and_training_goes_on(when):
    model, cut = made(memory=True), pruner(0.6, scope="layer", **when)
    fit(cut, model=model)
    assert widths(model)[0] == 16
    assert widths(model)[1:] == (5, 7)
    assert len(cut.history.cuts) == 2
    assert model.kept.shape == (4, 16, 6, 6)


@pytest.mark.parametrize("penalty", ["subgradient", "group_lasso"])
def test_channels_that_are_kept_for_others_to_look_at_go(penalty):
    model = made(memory=False)
    fit(pruner(0.5, at=[1, 2], penalty=penalty), model=model)
    assert sum(widths(model)) == 18
    assert model.kept.shape[1] == widths(model)[0]
