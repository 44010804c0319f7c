"""What people and files hand over by mistake, and whether a refusal says so."""

import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from lightning_sparse import (
    NM,
    Block,
    Channel,
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    DensityLogger,
    FanIn,
    LinearSchedule,
    MaskUpdater,
    Regularizer,
    RigL,
    StagedSchedule,
    optim,
)
from lightning_sparse.catalogue import ALGORITHMS
from lightning_sparse.penalties import Elastic, GroupLasso

NUMBERS = [0, 1, 2, -1, 3, 10**30, -(2**63), 2**64, 10**400, 0.0, 0.5, 1.0, 1.5, -0.5, 2.0, 1e308, -1e308, 5e-324]
ODD_NUMBERS = [float("nan"), float("inf"), -float("inf"), True, False, 1j, Decimal("0.5"), np.float32(0.5), np.int64(2)]
WORDS = ["", "0.5", "epoch", "init", "none", "Rigl", "magnitude", "random", "global", "*", "[", "ü☃", "a\nb", "weights"]
HOLDERS: list[Any] = [None, [], (), {}, set(), [0.5], ["*"], ["nothing*"], [None], (0.1, 0.2)]
HOLDERS += [{"*": 0.5}, {0: 0.5}, {"*": "x"}]
OBJECTS = [b"x", print, RigL, RigL(), ConstantSchedule(0.3), NM, NM(2, 4), nn.ReLU(), torch.tensor(0.5), torch.ones(2)]
JUNK = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from(HOLDERS),
    st.sampled_from(OBJECTS),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
)


def optimizer(kind: type) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer of one weight, by its options."""
    signature = list(inspect.signature(kind).parameters.values())[1:]

    def make(**options: Any) -> torch.optim.Optimizer:
        return kind([nn.Parameter(torch.ones(2, 2))], **options)

    make.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return make


SCHEDULES = [ConstantSchedule, CosineSchedule, LinearSchedule, CubicSchedule, StagedSchedule]
MASKED = [optim.MaskedSGD, optim.MaskedAdam, optim.MaskedAdamW, optim.ProxSGD]
NEEDED = {"ConstantSchedule": {"value": 0.3}, "StagedSchedule": {"values": (0.3,)}, "Block": {"rows": 2, "columns": 2}}
NEEDED |= {kind.__name__: {"start": 0.3} for kind in SCHEDULES[1:4]}
SUBJECTS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in ALGORITHMS.values()},
    **{kind.__name__: kind for kind in [*SCHEDULES, MaskUpdater, DensityLogger, Regularizer]},
    **{kind.__name__: kind for kind in (NM, Block, FanIn, Channel, Elastic, GroupLasso)},
    **{kind.__name__: optimizer(kind) for kind in MASKED},
}


def arguments(subject: str) -> list[str]:
    """Names that a subject takes."""
    return list(inspect.signature(SUBJECTS[subject]).parameters)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A subject and one to three of its arguments, each with junk."""
    subject = draw(st.sampled_from([name for name in sorted(SUBJECTS) if arguments(name)]))
    names = draw(st.lists(st.sampled_from(arguments(subject)), min_size=1, max_size=3, unique=True))
    return subject, {name: draw(JUNK) for name in names}


def spellings(value: Any) -> set[str]:
    """How a message may write a value; where steps are counted, 2.0 is taken for 2, and called so."""
    return {repr(value), str(value), *([str(int(value))] if isinstance(value, float) and value.is_integer() else [])}


def named(text: str, given: dict[str, Any]) -> bool:
    """Whether a message names one of the arguments together with what it was given."""
    return any(name in text and any(word in text for word in spellings(value)) for name, value in given.items())
