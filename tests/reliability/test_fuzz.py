"""Whatever a user writes, a clear refusal or a correct run."""

import warnings
from numbers import Real
from typing import Any

import pytest
import torch
from drawn import SETTINGS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from junk import JUNK, NEEDED, SUBJECTS, calls, named
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from loops import dead, differences, flat
from torch import nn
from torch.nn import functional as F

from lightning_sparse import Algorithm, MaskUpdater, Pattern, Regularizer, Schedule, Sparsifier, Static, plan
from lightning_sparse.callbacks.engine import chosen
from lightning_sparse.penalties import Penalty, WeightRegularizer

REFUSALS = (ValueError, TypeError, MisconfigurationException)
BATCHES = [(torch.linspace(-1, 1, 48).reshape(6, 8) * i, torch.arange(6) % 3) for i in (1, 2)]
SLOW = 1000  # more rounds than this are right, and would take all day


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def task_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in BATCHES * 2:
        optimizer.zero_grad()
        task_loss(model, batch).backward()
        optimizer.step()


def engine(model: nn.Module, algorithm: Any, **asked: Any) -> Sparsifier:
    """An engine that has all the data it may ask for."""
    known = {"total_steps": 4, "epoch_steps": 2, "batches": BATCHES, "loss": task_loss, "example_inputs": BATCHES[0][0]}
    return Sparsifier(model, algorithm, **{**known, **asked})


def trains_or_refuses(algorithm: Any, clear: Any, **asked: Any) -> None:
    """Four steps with masks that hold; or a refusal that is clear, after which the model is as before."""
    model = network()
    before, optimizer = flat(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    try:
        made = engine(model, algorithm, **asked)
        made.attach(optimizer)
    except REFUSALS as error:
        refused(error, clear(str(error)), model, before)
        assert not optimizer._optimizer_step_pre_hooks
        return
    train(model, optimizer)
    assert dead(dict(model.named_parameters()), made.masks) == 0
    assert made.steps == 4


def refused(error: Exception, is_clear: bool, model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert is_clear, f"{type(error).__name__}: {error}"
    assert differences(before, flat(model.state_dict())) == []


def use(made: Any, given: dict[str, Any]) -> None:
    """Whatever was made without complaint works."""

    def clear(text: str) -> bool:
        return any(name in text for name in [*given, type(made).__name__, repr(getattr(made, "pattern", made))])

    if isinstance(made, Algorithm) and max(getattr(made, "iterations", 0), getattr(made, "batches", 0)) <= SLOW:
        trains_or_refuses(made, clear)
    elif isinstance(made, Pattern):
        trains_or_refuses(Static(), clear, pattern=made)
    elif isinstance(made, MaskUpdater):
        names = ("allocation", "pattern", "init", "include", "exclude", "seed")
        asked = {name: getattr(made, name) for name in names}
        trains_or_refuses(chosen(made), clear, density=made.density_wanted, **asked)
    elif isinstance(made, Schedule):
        assert all(isinstance(made(step, stop), Real) for step in (0, 1, 5, 9) for stop in (1, 5))
    elif isinstance(made, torch.optim.Optimizer):
        weight = made.param_groups[0]["params"][0]
        made.set_mask(weight, torch.eye(2, dtype=torch.bool))
        weight.square().sum().backward()
        made.step()
        made.step()
    elif isinstance(made, Penalty):
        assert made.gradient(torch.ones(2, 2)).shape == (2, 2) if made.unfit(torch.ones(2, 2)) == "" else True
    elif isinstance(made, Regularizer) and made.on != "activations":
        penalizes_or_refuses(made, clear)


def penalizes_or_refuses(made: Regularizer, clear: Any) -> None:
    model = network()
    before = flat(model.state_dict())
    how = {"on": made.on, "proximal": made.proximal, "include": made.include, "exclude": made.exclude}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        WeightRegularizer(model, made.penalty, made.strength, total_steps=4, **how).attach(optimizer)
    except REFUSALS as error:
        refused(error, clear(str(error)) or "BatchNorm" in str(error), model, before)
        return
    train(model, optimizer)


def make_and_use(call: tuple[str, dict[str, Any]]) -> None:
    """A subject is made and works, or says what was wrong."""
    subject, given = call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # layers that a pattern does not fit
        try:
            made = SUBJECTS[subject](**{**NEEDED.get(subject, {}), **given})
        except REFUSALS as error:
            text = str(error)
        else:
            use(made, given)
            return
    assert named(text, given), text


@settings(SETTINGS, max_examples=400)
@given(calls())
@example(("GMP", {"stop": 2.0, "begin": 2.0}))  # refused as 2 and 2
def test_junk_is_refused_by_name_or_works(call):
    make_and_use(call)


@pytest.mark.long
@settings(SETTINGS, max_examples=5000)
@given(calls())
def test_much_junk_is_refused_by_name_or_works(call):
    make_and_use(call)


CHOICES = ["density", "allocation", "pattern", "include", "exclude"]
ENGINE = [*CHOICES, "algorithm", "init", "seed", "total_steps", "epoch_steps"]


@settings(SETTINGS, max_examples=200)
@given(st.dictionaries(st.sampled_from(ENGINE), JUNK, min_size=1, max_size=2))
def test_an_engine_refuses_junk_by_name_or_works(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        asked = {"algorithm": Static(), **given}
        trains_or_refuses(asked.pop("algorithm"), lambda text: any(name in text for name in given), **asked)


@settings(SETTINGS, max_examples=100)
@given(st.dictionaries(st.sampled_from(CHOICES), JUNK, min_size=1, max_size=2))
def test_a_plan_refuses_junk_by_name_or_is_made(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            made = plan(network(), **{"density": 0.5, **given})
        except REFUSALS as error:
            text = str(error)
        else:
            assert 0 < made.live <= made.size
            return
    assert any(name in text for name in given), text


def test_every_wrong_argument_is_named_at_once():
    wrong = {"density": "much", "seed": 0.5, "init": 3, "exclude": "head", "restore_rng": "no", "name": None}
    with pytest.raises(ValueError, match="MaskUpdater: 6 problems") as caught:
        MaskUpdater(**wrong)
    assert all(name in str(caught.value) and repr(value) in str(caught.value) for name, value in wrong.items())
