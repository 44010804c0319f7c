"""slim refuses with the reason, and whatever fails, the module is exactly as it was."""

import math
import sys

import pytest
import torch
from channels.slimmed import Net, data, inputs, loss, same, snapshot
from torch import nn

from lightning_sparse import slim
from lightning_sparse.channels.criteria import CRITERIA


def refused(model, *args, **settings):
    """The message; the model must not have changed."""
    before = snapshot(model)
    with pytest.raises(ValueError) as caught:
        slim(model, *args, **settings)
    same(before, snapshot(model))
    return str(caught.value)


def test_all_problems_with_arguments_are_named_at_once():
    text = refused(Net(), None, 2.0, criterion="fisher", scope="all", exclude="stem", round_to=0, cap=2, compensate=1)
    assert "8 problems" in text
    for word in ("example_inputs", "keep", "fisher", "scope", "['stem']", "round_to", "cap", "compensate"):
        assert word in text
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        slim("model", inputs())
    assert "batches= and loss=" in refused(Net(), inputs(), criterion="taylor")
    assert "go together" in refused(Net(), inputs(), batches=data())


def test_a_criterion_that_sees_nothing_says_why():
    text = refused(Net(norm=False), inputs(), criterion="gamma")
    assert "nothing can be cut" in text
    assert "no BatchNorm with weights" in text
    assert "stem, inner" in text


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_in_which_everything_is_frozen_says_why(criterion):
    given = {"batches": [torch.zeros(1, 3)], "loss": lambda model, x: model(x).sum()}
    text = refused(nn.Linear(3, 2), torch.zeros(1, 3), criterion=criterion, **given)
    assert "nothing can be cut" in text
    assert "output" in text


def test_a_model_that_is_excluded_whole_says_so():
    text = refused(Net(), inputs(), exclude=["*"])
    assert "stem, inner: excluded by name" in text


def test_a_target_that_cannot_be_met_says_what_can():
    text = refused(Net(), inputs(), 0.1, min_channels=8)
    assert "at least 0.3334 stays" in text  # 8 + 8 of 48
    text = refused(Net(), inputs(), 0.1, min_channels=8, target="params")
    # by hand: stem 8*9+8, norms 16+16, inner 8*8*9, outer 8*8+8, head 8*5+5 of 160+32+4608+64+528+85
    share = (80 + 32 + 576 + 72 + 45) / 5477
    assert f"at least {math.ceil(share * 1e4) / 1e4:g} stays" in text


def test_globs_that_fit_nothing_are_named():
    assert "['stam'] matches no parameter" in refused(Net(), inputs(), exclude=["stam"])


@pytest.mark.parametrize("stage", ["data", "report", "cut"])
def test_an_error_at_any_stage_leaves_the_module_as_it_was(stage, monkeypatch):
    model = Net()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    model.inner.weight.requires_grad_(False)
    before = snapshot(model)

    def fail(*args, **kwargs):
        raise RuntimeError("on purpose")

    module = sys.modules["lightning_sparse.channels.slim"]
    if stage != "data":
        monkeypatch.setattr(module, {"report": "make_report", "cut": "shrink"}[stage], fail)
    with torch.no_grad():
        model.inner_norm.weight[:20] = 0  # constants, so that something is folded
        model.inner_norm.bias.fill_(1.0)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        slim(model, inputs(), criterion="bn_std", batches=data(), loss=fail if stage == "data" else loss)
    same(before, snapshot(model))


def test_a_forward_that_fails_leaves_the_module_as_it_was():
    model = Net()
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        slim(model, torch.zeros(1, 3, 8, 8))
    same(before, snapshot(model))
