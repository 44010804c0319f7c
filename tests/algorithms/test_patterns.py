"""Algorithms under patterns: the pattern holds, and counts are exact, after every step, also of a resumed run."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sparse import (
    GMP,
    NM,
    SET,
    Block,
    Channel,
    ConstantSchedule,
    FanIn,
    MaskUpdater,
    RigL,
    SparseMomentum,
    Sparsifier,
    Static,
)

HALF = ConstantSchedule(0.5)
WHEN = {"every": 2, "stop": 14, "fraction": HALF}
STEPS = 16
RATIOS = {"2:4": NM(2, 4), "3:4": NM(3, 4), "1:4": NM(1, 4)}
PATTERNS = RATIOS | {"block": Block(2, 4), "fan-in": FanIn(), "channel": Channel()}
LAYERS = {  # algorithms that keep the count of every layer, with how the first mask is drawn
    "static": (Static(), "random"),
    "static by magnitude": (Static(), "magnitude"),
    "set": (SET(**WHEN), "random"),
    "set original": (SET(variant="original", **WHEN), "random"),
    "set original, dead before": (SET(variant="original", regrow_dropped=False, **WHEN), "random"),
    "rigl": (RigL(**WHEN), "random"),
    "rigl, authors' rules": (RigL(regrow_dropped=True, replace_step=True, **WHEN), "random"),
    "rigl, all at once": (RigL(every=2, stop=14, fraction=ConstantSchedule(1.0)), "magnitude"),
}
UNITS = {  # of the four layers below: the weights of an output, of a block, or one for each output
    "block": [8] * 4,
    "fan-in": [8, 4, 12, 4],
    "channel": [36, 36, 144, 12],
}


def network(seed=0):
    """Weights (8, 4, 3, 3), (8, 2, 3, 3) of two groups turned around, (12, 144) and (4, 12); 2208 in all."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, groups=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 4))


def matrices(masks):
    """Masks as arrays (outputs, inputs, kernel), by hand: the transposed convolution's groups have four inputs each."""
    shown = {name: mask.numpy() for name, mask in masks.items()}
    turned = shown["2.weight"]  # inputs 0 to 3 lead to outputs 0 and 1, inputs 4 to 7 to outputs 2 and 3
    shown["2.weight"] = np.concatenate([turned[:4].swapaxes(0, 1), turned[4:].swapaxes(0, 1)])
    return {name: array.reshape(*array.shape[:2], -1) for name, array in shown.items()}


def assert_holds(name, masks, *, exact=True):
    """The pattern by its definition; while density falls towards n:m, groups may have more than n."""
    pattern = PATTERNS[name]
    for layer, array in matrices(masks).items():
        outputs, inputs, kernel = array.shape
        if name.endswith(":4"):
            counts = array.reshape(outputs, inputs // 4, 4, kernel).sum(2)
            assert (counts == pattern.n).all() if exact else (counts >= pattern.n).all(), layer
        elif name == "block":
            tiles = array.reshape(outputs // 2, 2, inputs // 4, 4, kernel)
            assert (tiles.all((1, 3)) == tiles.any((1, 3))).all(), layer
        elif name == "channel":
            assert (array.all((1, 2)) == array.any((1, 2))).all(), layer
        else:
            assert len(set(array.sum((1, 2)).tolist())) == 1, layer


class Run:
    """A plain loop on noise that depends on the step alone."""

    def __init__(self, algorithm, pattern, init="random", *, density=0.4, allocation=None, state=None, weights=None):
        self.model = network()
        if weights:
            self.model.load_state_dict(weights[0])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        if weights:
            self.optimizer.load_state_dict(weights[1])
        density = density if pattern.fixed_density() is None else None
        wanted = {"allocation": allocation, "pattern": pattern, "init": init, "state": state}
        lengths = {"total_steps": STEPS, "epoch_steps": 4}
        self.engine = Sparsifier(self.model, algorithm, density, optimizers=[self.optimizer], **wanted, **lengths)

    def step(self, n):
        generator = torch.Generator().manual_seed(n)
        x, y = torch.randn(6, 4, 6, 6, generator=generator), torch.randint(0, 4, (6,), generator=generator)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        assert all(bool((self.weight(name)[~mask] == 0).all()) for name, mask in self.engine.masks.items())
        return {name: mask.clone() for name, mask in self.engine.masks.items()}

    def weight(self, name):
        return self.model.get_parameter(name).detach()

    def saved(self):
        return self.engine.state_dict(), copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))


def counts(masks):
    return [int(mask.sum()) for mask in masks.values()]


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("algorithm", LAYERS)
def test_the_pattern_and_the_count_of_every_layer_hold_after_every_step(pattern, algorithm):
    rule, init = LAYERS[algorithm]
    run = Run(rule, PATTERNS[pattern], init)
    planned = [row.live for row in run.engine.plan.layers]
    history = [run.engine.masks]
    for n in range(1, STEPS + 1):
        history.append(run.step(n))
        assert_holds(pattern, history[-1])
        assert counts(history[-1]) == planned, n
    assert_holds(pattern, history[0])
    moved = [n for n in range(1, STEPS + 1) if not same(history[n], history[n - 1])]
    assert not moved if "static" in algorithm else len(moved) >= 3
    assert set(moved) <= set(range(2, 15, 2))


RESUMED = [(rule, pattern) for rule in ("rigl", "set original", "gmp") for pattern in PATTERNS]


@pytest.mark.parametrize(("algorithm", "pattern"), [*RESUMED, *(("momentum", pattern) for pattern in UNITS)])
def test_a_resumed_run_goes_on_bit_for_bit_in_the_pattern(algorithm, pattern):
    rules = {"gmp": (GMP(every=3, stop=12), "random"), "momentum": (SparseMomentum(**WHEN), "random")}
    rule, init = rules.get(algorithm) or LAYERS[algorithm]
    run = Run(rule, PATTERNS[pattern], init)
    for n in range(1, 8):
        run.step(n)
    state, weights = run.saved()
    again = Run(rule, PATTERNS[pattern], init, state=state, weights=weights)
    for n in range(8, STEPS + 1):
        masks = run.step(n)
        assert same(masks, again.step(n))
        assert_holds(pattern, again.engine.masks, exact=algorithm != "gmp" or n >= 12)
    assert same(run.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize("allocation", ["erk", "global"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruning_stays_in_the_pattern_all_the_way_down(pattern, allocation):
    run = Run(GMP(every=3, stop=12), PATTERNS[pattern], allocation=allocation)
    planned, size = run.engine.plan.live, 2208
    assert size == sum(row.size for row in run.engine.plan.layers)
    least = UNITS.get(pattern, [1] * 4)
    for n in range(1, STEPS + 1):
        masks = run.step(n)
        share = (1 - min(n // 3 * 3, 12) / 12) ** 3  # Zhu & Gupta 2017, eq. 1
        assert_holds(pattern, masks, exact=n >= 12)
        assert abs(sum(counts(masks)) - round(planned + (size - planned) * share)) <= max(least) / 2
        assert all(count % unit == 0 for count, unit in zip(counts(masks), least, strict=True))
    assert abs(sum(counts(masks)) - planned) <= (max(least) / 2 if allocation == "global" else 0)
    if allocation == "erk" or pattern.endswith(":4"):
        assert counts(masks) == [row.live for row in run.engine.plan.layers]


@pytest.mark.parametrize("regrow_dropped", [False, True])
@pytest.mark.parametrize("pattern", UNITS)
def test_budgets_move_in_whole_units_and_the_total_never_drifts(pattern, regrow_dropped):
    run = Run(SparseMomentum(regrow_dropped=regrow_dropped, **WHEN), PATTERNS[pattern])
    planned, units = run.engine.plan.live, UNITS[pattern]
    shares = set()
    for n in range(1, STEPS + 1):
        masks = run.step(n)
        assert_holds(pattern, masks)
        shares.add(tuple(counts(masks)))
        assert all(count % unit == 0 for count, unit in zip(counts(masks), units, strict=True))
        assert abs(sum(counts(masks)) - planned) <= (0 if pattern == "block" else max(units) / 2), n
    assert len(shares) >= 3


@pytest.mark.parametrize("pattern", PATTERNS)
def test_first_masks_of_a_common_budget_are_in_the_pattern(pattern):
    run = Run(Static(), PATTERNS[pattern], "magnitude", allocation="global")
    assert_holds(pattern, run.engine.masks)
    state, weights = run.saved()
    again = Run(Static(), PATTERNS[pattern], "magnitude", allocation="global", state=state, weights=weights)
    assert same(run.engine.masks, again.engine.masks)
    assert [row.live for row in run.engine.plan.layers] == counts(run.engine.masks)


# ---- How much is exchanged


def exchanged(algorithm, pattern, density=0.4, init="random"):
    """How many weights an update exchanges, layer by layer; asserts that none of them lived before and dies again."""
    run = Run(algorithm, pattern, init, density=density)
    before = {name: mask.clone() for name, mask in run.engine.masks.items()}
    run.step(1)
    after = run.step(2)
    return [int((before[name] & ~after[name]).sum()) for name in after], counts(before)


def test_two_of_four_exchange_the_share_that_was_asked_for():
    gone, live = exchanged(RigL(every=2, stop=3, fraction=HALF), NM(2, 4))
    assert gone == [n // 2 for n in live]


def test_three_of_four_exchange_no_more_than_one_weight_of_a_group():
    # two thirds of the live would be two of each group's three; only one is dead, so at most one of each group goes
    gone, live = exchanged(RigL(every=2, stop=3, fraction=ConstantSchedule(2 / 3)), NM(3, 4))
    assert gone == [n // 3 for n in live]


def test_blocks_and_channels_exchange_whole_units_and_not_more_than_asked():
    for pattern, units in ((Block(2, 4), UNITS["block"]), (Channel(), UNITS["channel"])):
        gone, live = exchanged(RigL(every=2, stop=3, fraction=HALF), pattern)
        assert gone[:3] == [n // 2 // unit * unit for n, unit in zip(live[:3], units[:3], strict=True)]
        assert gone[3] == min(live[3] // 2 // units[3] * units[3], 48 - live[3])  # almost full


def test_a_full_row_exchanges_nothing_and_the_others_all_they_can():
    # at density .75 a quarter of each row is dead: of the half that was asked for, as many go as can come
    gone, live = exchanged(RigL(every=2, stop=3, fraction=HALF), FanIn(), density=0.75)
    dead = [288 - live[0], 144 - live[1], 1728 - live[2], 48 - live[3]]
    assert gone == [min(n // 2, d) for n, d in zip(live, dead, strict=True)]


def test_what_is_grown_in_a_group_has_the_largest_gradients_of_it():
    # two groups of four; |w| 9 8 | 1 2 live; half go: both of the second group, where |g| is largest in 6, 7
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.tensor([[9.0, 8, 0, 0, 1, 2, 0, 0]])
    slope = torch.tensor([[0.0, 0, 9, 9, 0, 0, 3, 4]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = RigL(every=1, stop=9, fraction=HALF)
    engine = Sparsifier(model, rule, pattern=NM(2, 4), init="magnitude", optimizers=[optimizer])
    assert engine.masks["weight"].int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]
    (model.weight * slope).sum().backward()
    optimizer.step()
    # 2 and 3 have larger gradients, but their group has its two already
    assert engine.masks["weight"].int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]


def test_a_unit_grows_by_the_sum_of_its_gradients():
    model = nn.Linear(2, 4, bias=False)
    model.weight.data = torch.tensor([[3.0, 3], [1, 1], [0, 0], [0, 0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = RigL(every=1, stop=9, fraction=HALF)
    engine = Sparsifier(model, rule, 0.5, pattern=Channel(), init="magnitude", optimizers=[optimizer])
    (model.weight * torch.tensor([[0.0, 0], [9, 9], [5, 0], [3, 3]])).sum().backward()
    optimizer.step()
    assert engine.masks["weight"].int().tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]


# ---- In a Trainer


def test_the_callback_takes_a_pattern_and_names_what_stays_dense(caplog):
    from helpers import Recorder, loader, net, trainer

    updater = MaskUpdater(RigL(every=3, stop=12), pattern=NM(2, 4))
    recorder = Recorder(updater)
    fit = trainer([updater, recorder], max_epochs=1)
    with pytest.warns(UserWarning, match=r"does not fit 1 of 3 layers.*net\.0\.weight \(6, 2, 3, 3\): 2 inputs"):
        fit.fit(net(), loader())
    assert updater.densities() == {"net.4.weight": 0.5, "net.6.weight": 0.5}
    assert recorder.leaks == 0
    assert recorder.moves >= 3
    for mask in updater.masks.values():
        assert (mask.view(-1, 4).sum(1) == 2).all()
