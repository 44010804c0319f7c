"""The promises of the package, under runs that nobody wrote down."""

import copy
import pickle
import random

import pytest
import torch
from drawn import ALGORITHMS, DRAW_ANEW, SETTINGS, STEPS, Case, cases
from hypothesis import event, given, reject, seed, settings
from loops import Loop, dead, differences, flat, random_states, watched
from promised import keeps_layers, totals
from torch import Tensor

from lightning_sparse import Sparsifier, Unstructured
from lightning_sparse.catalogue import ALGORITHMS as KNOWN

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def started(case: Case, **settings) -> Loop:
    """The run, or a rejected draw: what is refused must be refused with reasons, and leave no trace."""
    model = case.model()
    before = flat(case.model().state_dict())
    try:
        return Loop(case, model=model, **settings)
    except ValueError as error:
        refused(error, before, model)
        reject()


def refused(error: ValueError, before: dict[str, Tensor], model: torch.nn.Module) -> None:
    """What is refused gets reasons, and leaves the model as it was (but for the precision that was asked for)."""
    event(f"refused: {str(error)[:40]}")
    assert len(str(error)) > 20
    after = {name: value.to(before[name].dtype) for name, value in flat(model.state_dict()).items()}
    assert differences(before, after) == []


def count_problems(engine: Sparsifier, case: Case, step: int) -> list[str]:
    """Where counts after a step are others than those that were promised."""
    counts = {name: int(mask.sum()) for name, mask in engine.masks.items()}
    sizes, final = [r.size for r in engine.plan.layers], [r.live for r in engine.plan.layers]
    problems = [f"{name} is empty" for name, count in counts.items() if count == 0]
    together = all(p.scope == "global" for p in engine.params.values())
    if any(p.free for p in engine.params.values()):
        return problems  # the density is an outcome
    allowed = totals(engine.algorithm, step, sizes, final, together)
    slack = max(p.unit for p in engine.params.values()) - 1
    if not allowed.start - slack <= sum(counts.values()) < allowed.stop + slack:
        problems.append(f"{counts} are {sum(counts.values())}, not in {allowed}")
    if keeps_layers(engine.algorithm, together) and list(counts.values()) != final:
        problems.append(f"{counts}, planned {final}")
    free = case.pattern in (None, Unstructured()) and isinstance(case.density, float)
    if free and sum(final) != round(case.density * sum(sizes)):
        problems.append(f"planned {sum(final)}, wanted {case.density} of {sum(sizes)}")
    return problems + [f"{p.name} is not {p.pattern}" for p in engine.params.values() if not p.holds(p.mask)]


def dead_state(loop: Loop) -> list[str]:
    """Optimizer state of dead weights that is not zero; latent weights are stepped though they are not shown."""
    masks = {name: mask for name, mask in loop.masks.items() if loop.engine.params[name].latent is None}
    named = dict(loop.model.named_parameters())
    rows = {(name, key): v for name in masks for key, v in loop.optimizer.state.get(named[name], {}).items()}
    found = [
        f"{name}: {key}"
        for (name, key), value in rows.items()
        if isinstance(value, Tensor) and value.shape == masks[name].shape and not bool((value[~masks[name]] == 0).all())
    ]
    weights = [w for group in loop.optimizer.param_groups for w in group["params"]]
    masked = {id(named[name]): mask for name, mask in masks.items()}
    live = torch.cat([masked.get(id(w), torch.ones_like(w, dtype=torch.bool)).flatten() for w in weights])
    history = flat(loop.optimizer.state_dict()["state"]) if loop.case.optimizer == "lbfgs" else {}
    return found + [k for k, v in history.items() if v.shape == live.shape and not bool((v[~live] == 0).all())]


def check(case: Case) -> None:
    """Every promise that a plain loop can show."""
    states = random_states()
    loop = started(case)
    dense = {name: value.shape for name, value in case.model().state_dict().items()}
    saved, twins = b"", []
    assert not count_problems(loop.engine, case, 0)
    with watched(loop.model, lambda: loop.masks) as seen:
        for _ in range(STEPS):
            loop.step()
            assert not count_problems(loop.engine, case, loop.done), f"after step {loop.done}"
            assert not dead_state(loop), f"after step {loop.done}"
            assert dead(dict(loop.model.named_parameters()), loop.masks) == 0, f"after step {loop.done}"
            if loop.done == case.again:
                saved, twins = loop.save(), [copy.deepcopy(loop.model), pickle.loads(pickle.dumps(loop.model))]
                assert all(not differences(flat(twin.state_dict()), flat(loop.model.state_dict())) for twin in twins)
                assert all(dead(dict(twin.named_parameters()), loop.masks) == 0 for twin in twins)
    assert seen["looks"] >= STEPS
    assert seen["leaks"] == 0
    assert {name: value.shape for name, value in loop.model.state_dict().items()} == dense
    other = Loop(case, saved=saved)
    while other.done < STEPS:
        other.step()
    assert differences(loop.everything(), other.everything()) == []
    loop.engine.finalize()
    assert dead(loop.model.state_dict(), loop.masks) == 0
    assert random_states() == states


def check_density_one(case: Case) -> None:
    """At density 1 nothing differs from a run without the package."""
    loop, dense = started(case, density=1.0), Loop(case, dense=True)
    for _ in range(STEPS):
        loop.step()
        dense.step()
    assert loop.engine.density() == 1.0
    assert differences(flat(dense.model.state_dict()), flat(loop.model.state_dict())) == []
    assert differences(flat(dense.optimizer.state_dict()), flat(loop.optimizer.state_dict())) == []


def test_every_algorithm_is_drawn():
    assert set(ALGORITHMS) == set(KNOWN)


@settings(SETTINGS, max_examples=60)
@given(cases())
def test_the_promises_hold_after_every_step(case):
    check(case)


@settings(SETTINGS, max_examples=15)
@given(cases())
def test_density_one_is_a_run_without_the_package(case):
    check_density_one(case)


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("checked", [check, check_density_one], ids=lambda f: f.__name__)
def test_the_promises_hold_in_a_thousand_runs(checked, part):
    """A thousand runs of the engine by hand, and a hundred at density 1."""
    begin = random.SystemRandom().randrange(2**32) if DRAW_ANEW else 0
    examples = 100 if checked is check else 10

    @seed(begin + part)
    @settings(SETTINGS, max_examples=examples, derandomize=False, database=None)
    @given(cases())
    def many(case):
        checked(case)

    many()
