"""What the property tests draw: a small model, and all that a run can be made of."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from layers import LAYERS
from torch import nn
from torch import optim as torch_optim

from lightning_sparse import (
    ACDC,
    DSR,
    GMP,
    L0,
    MEST,
    NM,
    SET,
    SNIP,
    SRSTE,
    STR,
    Algorithm,
    Block,
    Channel,
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    FanIn,
    GlobalMagnitude,
    GraNet,
    GraSP,
    LinearSchedule,
    RigL,
    SparseMomentum,
    SRigL,
    StagedSchedule,
    Static,
    SynFlow,
    TopKAST,
    optim,
)

DRAW_ANEW = "LIGHTNING_SPARSE_DRAW_ANEW" in os.environ  # else every session draws the same
SETTINGS = settings(
    deadline=None,
    derandomize=not DRAW_ANEW,
    print_blob=DRAW_ANEW,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
STEPS, EPOCH = 12, 4  # optimizer steps of a run, and of an epoch


Make = Callable[[list[nn.Parameter]], torch_optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda w: torch_optim.SGD(w, lr=0.1),
    "momentum": lambda w: torch_optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "dampened": lambda w: torch_optim.SGD(w, lr=0.1, momentum=0.9, dampening=0.5, foreach=False),
    "nesterov": lambda w: torch_optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "fused sgd": lambda w: torch_optim.SGD(w, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda w: torch_optim.Adam(w, lr=1e-2, weight_decay=1e-2),
    "amsgrad": lambda w: torch_optim.Adam(w, lr=1e-2, amsgrad=True, foreach=True),
    "adamw": lambda w: torch_optim.AdamW(w, lr=1e-2, weight_decay=0.1, amsgrad=True, maximize=True),
    "fused adamw": lambda w: torch_optim.AdamW(w, lr=1e-2, weight_decay=0.1, fused=True),
    "nadam": lambda w: torch_optim.NAdam(w, lr=1e-2),
    "radam": lambda w: torch_optim.RAdam(w, lr=1e-2),
    "adamax": lambda w: torch_optim.Adamax(w, lr=1e-2),
    "rmsprop": lambda w: torch_optim.RMSprop(w, lr=1e-2, centered=True, momentum=0.5),
    "adagrad": lambda w: torch_optim.Adagrad(w, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda w: torch_optim.Adadelta(w, lr=0.5),
    "asgd": lambda w: torch_optim.ASGD(w, lr=0.1, t0=2.0),
    "rprop": lambda w: torch_optim.Rprop(w, lr=1e-2),
    "lbfgs": lambda w: torch_optim.LBFGS(w, lr=0.1, max_iter=3),
    "masked sgd": lambda w: optim.MaskedSGD(w, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "masked adamw": lambda w: optim.MaskedAdamW(w, lr=1e-2, amsgrad=True),
    "prox": lambda w: optim.ProxSGD(w, lr=0.1, momentum=0.5, l1=1e-2),
}

_SHARE = st.floats(0, 1).map(lambda share: round(share, 3))
SCHEDULES = st.one_of(
    st.builds(ConstantSchedule, _SHARE),
    st.builds(CosineSchedule, _SHARE, _SHARE),
    st.builds(LinearSchedule, _SHARE, _SHARE),
    st.builds(CubicSchedule, _SHARE, _SHARE),
    st.builds(StagedSchedule, st.tuples(_SHARE, _SHARE), st.just((0.5,))),
)
_ENDING = st.one_of(
    st.builds(LinearSchedule, _SHARE),
    st.builds(StagedSchedule, st.tuples(_SHARE, st.just(0.0)), st.just((0.5,))),
)
_SOMETIMES = st.sampled_from([False, False, False, True])
_SHARES = st.sampled_from([0.5, 0.75, 1.0])
_WHEN: dict[str, Any] = {
    "every": st.integers(1, 4) | st.just("epoch"),
    "stop": st.integers(4, STEPS) | _SHARES,
}
_BEGIN = st.integers(0, 3)
_SWAP: dict[str, Any] = {**_WHEN, "fraction": SCHEDULES, "regrow_dropped": _SOMETIMES, "replace_step": _SOMETIMES}
_DROP = st.sampled_from(["magnitude", "magnitude", "contribution"])
_STRENGTH = st.sampled_from([0.0, 1e-4, 0.1])

ALGORITHMS: dict[str, st.SearchStrategy[Algorithm]] = {
    "static": st.builds(Static),
    "snip": st.builds(SNIP, batches=st.integers(1, 3)),
    "grasp": st.builds(GraSP, samples=st.none() | st.integers(2, 4), batches=st.integers(1, 2)),
    "synflow": st.builds(SynFlow, iterations=st.integers(1, 5)),
    "set": st.one_of(st.builds(SET, drop=_DROP, **_SWAP), st.builds(SET, variant=st.just("original"), **_SWAP)),
    "rigl": st.builds(RigL, drop=_DROP, variant=st.sampled_from(["paper", "itop"]), **_SWAP),
    "sparse_momentum": st.builds(SparseMomentum, drop=_DROP, beta=st.sampled_from([0.0, 0.9]), **_SWAP),
    "dsr": st.builds(DSR, threshold=st.sampled_from([1e-9, 0.02, 10.0]), **_SWAP),
    "mest": st.one_of(
        st.builds(MEST, lam=_STRENGTH, **_SWAP),
        st.builds(MEST, variant=st.just("em_s"), **{**_SWAP, "fraction": _ENDING}),
    ),
    "srigl": st.builds(SRigL, gamma=st.sampled_from([0.0, 0.3, 1.0]), drop=_DROP, **_SWAP),
    "gmp": st.builds(GMP, begin=_BEGIN, **_WHEN),
    "global_magnitude": st.builds(
        GlobalMagnitude,
        rounds=st.integers(1, 3),
        stop=st.none() | st.integers(6, STEPS),
        rewind=st.none() | st.just("init") | st.just(1),
    ),
    "granet": st.builds(
        GraNet, initial=st.sampled_from([0.3, 0.5, 1.0]), begin=_BEGIN, end=st.just(4) | st.just(0.5), **_SWAP
    ),
    "acdc": st.builds(
        ACDC,
        every=st.integers(1, 4) | st.just("epoch"),
        stop=st.integers(6, STEPS),
        begin=st.integers(1, 3),
        last=st.integers(1, 3),
    ),
    "str": st.builds(STR, start=st.sampled_from([-3200.0, -5.0]), decay=st.none() | _STRENGTH, **_WHEN),
    "l0": st.builds(
        L0,
        begin=_BEGIN,
        strength=_STRENGTH,
        gates=st.sampled_from(["weight", "unit"]),
        lr=st.sampled_from([1e-3, 0.5]),
        **_WHEN,
    ),
    "topkast": st.builds(TopKAST, backward=st.sampled_from([1.0, 1.5, 20.0]), penalty=_STRENGTH, **_WHEN),
    "srste": st.builds(SRSTE, penalty=_STRENGTH, **_WHEN),
}
_PATTERNS = st.sampled_from([None] * 6 + [NM(2, 4), NM(1, 2), Block(2, 2), FanIn(), Channel()])


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        layers: names in :data:`LAYERS`; a head of three classes comes behind them.
        frozen: positions of layers that are not trained.
        again: the step after which the run is saved and gone on with.
        closure: whether gradients are made inside ``step``.
    """

    layers: tuple[str, ...]
    frozen: frozenset[int]
    algorithm: Algorithm
    density: float | None
    allocation: Any
    pattern: Any
    init: Literal["random", "magnitude"]
    optimizer: str
    accumulate: int
    precision: Literal["32-true", "bf16-mixed", "64-true"]
    closure: bool
    clip: bool
    seed: int
    again: int

    def model(self, seed: int | None = None) -> nn.Sequential:
        """The model, whose first weights depend on ``seed`` alone; the global random state is as before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            model = nn.Sequential(*[LAYERS[name]() for name in self.layers], nn.Linear(8, 3))
        for i in self.frozen:
            model[i].requires_grad_(False)
        return model

    def stepper(self, model: nn.Module) -> torch_optim.Optimizer:
        """The optimizer of all that is trained."""
        return OPTIMIZERS[self.optimizer]([w for w in model.parameters() if w.requires_grad])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A run that should work; a few ask for what is refused."""
    layers = tuple(draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3)))
    name = draw(st.sampled_from(sorted(ALGORITHMS)))
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    pattern = draw(_PATTERNS)
    frozen = draw(st.sets(st.integers(0, len(layers) - 1), max_size=1)) if draw(_SOMETIMES) else ()
    precisions = ["32-true", "32-true"]
    if optimizer not in ("asgd", "nadam"):  # torch loads their float32 scalars as float64: no run resumes exactly
        precisions.append("64-true")
    if "lstm" not in layers:  # oneDNN has no bfloat16 form of so small a bidirectional one, dense or not
        precisions.append("bf16-mixed")
    density = st.none() | st.sampled_from([0.25, 0.5, 1.0]) | st.floats(0.15, 1)
    return Case(
        layers=layers,
        frozen=frozenset(frozen),
        algorithm=draw(ALGORITHMS[name]),
        density=None if isinstance(pattern, NM) else draw(density),
        allocation=draw(st.sampled_from([None, None, "uniform", "er", "erk", "global"])),
        pattern=pattern,
        init=draw(st.sampled_from(["random", "magnitude"])),
        optimizer=optimizer,
        accumulate=draw(st.sampled_from([1, 1, 2])),
        precision=draw(st.sampled_from(precisions)),
        closure=optimizer == "lbfgs" or draw(_SOMETIMES),
        clip=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
        again=draw(st.integers(1, STEPS - 1)),
    )
