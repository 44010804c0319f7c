"""Values of the wrong kind are named, with what was given; everything that fits passes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from helpers import net, same, weights

from lightning_sparse import MEST, RigL, Schedule, Sparsifier, StagedSchedule, Static
from lightning_sparse.algorithms import Periodic
from lightning_sparse.core import schedules
from lightning_sparse.core.values import is_number, is_whole, mistyped

if TYPE_CHECKING:
    from nowhere import Nothing

NAN, INF = float("nan"), float("inf")


@dataclass
class Record:
    """One field of each kind."""

    whole: int = 1
    number: float = 0.5
    either: int | float | Literal["epoch"] = 1
    word: str = ""
    flag: bool = True
    many: tuple[float, ...] = ()
    plan: Schedule | None = None
    table: dict[str, int] | None = None


@pytest.mark.parametrize("value", [0, -3, 0.5, 1e308, np.float32(0.5), np.int64(3), 2**62])
def test_what_is_a_finite_number(value):
    assert is_number(value)


BAD = [NAN, INF, -INF, True, np.bool_(True), "1", None, 1j, 10**400, 2**63, torch.tensor(1.0)]


@pytest.mark.parametrize("value", BAD)
def test_what_is_none(value):
    assert not is_number(value)
    assert not is_whole(value)


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"number": 1, "either": 0.5, "plan": StagedSchedule((0.3,)), "many": [1, 0.5]},
        {"either": "epoch", "number": np.float64(1), "table": "whatever: not looked at"},
    ],
)
def test_what_fits_its_annotation_passes(fine):
    assert mistyped(Record(**fine)) == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("whole", 1.0, "whole must be a whole number below 2**63, got 1.0"),
        ("whole", True, "whole must be a whole number below 2**63, got True"),
        ("number", NAN, "number must be a finite number, got nan"),
        ("number", "0.5", "number must be a finite number, got '0.5'"),
        ("either", "day", "either must be a finite number or 'epoch', got 'day'"),
        ("either", None, "either must be a finite number or 'epoch', got None"),
        ("word", 3, "word must be a string, got 3"),
        ("flag", 1, "flag must be True or False, got 1"),
        ("many", (0.5, "x"), "many must be a tuple, each entry a finite number, got (0.5, 'x')"),
        ("plan", 0.3, "plan must be a Schedule or None, got 0.3"),
    ],
)
def test_what_does_not_is_named(name, value, sentence):
    assert mistyped(Record(**{name: value})) == [sentence]
    assert mistyped(Record(**{name: value}), [f"{name} must be better"]) == []
    assert mistyped(Record(**{name: value}), ["number_of_things must be better"]) == [sentence]


def test_annotations_that_only_a_type_checker_sees_are_not_looked_at():
    @dataclass
    class Own:
        value: "Nothing" = 3

    assert mistyped(Own()) == []


KINDS = [schedules.ConstantSchedule, schedules.CosineSchedule, schedules.LinearSchedule, schedules.CubicSchedule]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [NAN, INF, "0.3", None, True, 10**400])
def test_the_end_of_a_schedule_is_a_number(kind, value):
    with pytest.raises(ValueError, match=kind.__name__) as caught:
        kind(value)
    assert f"must be a finite number, got {value!r}" in str(caught.value)


def test_the_stages_of_a_schedule_are_numbers():
    with pytest.raises(ValueError, match="2 problems") as caught:
        StagedSchedule(("a",), until=0.5)
    assert "values must be a tuple" in str(caught.value)
    assert "until must be a tuple" in str(caught.value)


def test_a_wrong_type_does_not_hide_the_other_problems():
    with pytest.raises(ValueError, match="MEST: 3 problems") as caught:
        MEST(every=0, lam=NAN, regrow_dropped="no")
    assert all(word in str(caught.value) for word in ("every must be", "lam must be", "regrow_dropped must be True or"))


def test_a_users_own_algorithm_is_checked_too():
    @dataclass(frozen=True)
    class Own(Periodic):
        share: float = 0.5

        def problems(self) -> list[str]:
            return [*super().problems(), *(["share must be below 1"] if self.share >= 1 else [])]

    with pytest.raises(ValueError, match="Own: share must be a finite number, got 'half'"):
        Own(share="half")
    with pytest.raises(ValueError, match="Own: share must be below 1"):
        Own(share=2.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"density": "much"}, "density must be in (0, 1], got 'much'"),
        ({"density": {0: 0.5}}, "density must be given by globs, which are strings, got [0]"),
        ({"allocation": []}, "unknown allocation []"),
        ({"include": "net*"}, "include must be a list of globs, got the string 'net*'"),
        ({"include": 0}, "include must be a list of globs, got 0"),
        ({"pattern": "2:4"}, "pattern must be a Pattern such as NM(2, 4), got '2:4'"),
        ({"seed": 2**64}, "seed must be from -2**63 to 2**64 - 1"),
        ({"seed": 1.0}, "seed must be int, got 1.0"),
        ({"total_steps": "all"}, "total_steps must be a number of optimizer steps, or None, got 'all'"),
        ({"init": None}, "init must be 'random' or 'magnitude', got None"),
        ({"density": {"*": 0.5}, "allocation": "erk"}, "a density for each glob leaves nothing to allocate"),
    ],
    ids=str,
)
def test_an_engine_refuses_what_a_callback_refuses(wrong, words):
    model = net()
    before = weights(model)
    with pytest.raises(ValueError) as caught:
        Sparsifier(model, Static(), **wrong)
    assert words in str(caught.value)
    assert same(before, weights(model))


def test_a_step_is_not_replaced_where_nothing_is_sparse():
    """Density 1 is a no-op, also under the authors' rule that an update takes the place of a step."""
    ends = []
    for sparse in (False, True):
        model = net()
        optimizer = model.configure_optimizers()
        if sparse:
            Sparsifier(model, RigL(every=2, stop=9, replace_step=True), 1.0, optimizers=[optimizer])
        for i in range(6):
            optimizer.zero_grad()
            model(torch.full((2, 2, 6, 6), i + 1.0)).square().mean().backward()
            optimizer.step()
        ends.append(weights(model))
    assert same(*ends)
