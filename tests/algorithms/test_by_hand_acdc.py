"""ACDC by hand and against the authors' configurations; patterns under all algorithms whose counts move."""

from itertools import pairwise

import pytest
import torch
from tables import Slopes, after, live, param, steps
from torch import nn

from lightning_sparse import ACDC, DSR, MEST, NM, Block, FanIn, GraNet, Sparsifier, StagedSchedule


def phases(acdc, epochs):
    """Epochs before which the authors prune and restore."""
    plan = acdc.planned(epochs, None)
    due = [step for step in range(1, epochs + 1) if plan.due(step)]
    return [e for e in due if plan.compressed(e)], [e for e in due if not plan.compressed(e)]


@pytest.mark.parametrize(
    ("acdc", "epochs", "prunes", "restores"),
    [
        # their configs as range(start, end, period): prune (10, 71, 10) and 85, restore (15, 66, 10) and 75
        (ACDC(), 100, [*range(10, 71, 10), 85], [*range(15, 66, 10), 75]),
        (ACDC(every=5, stop=135, begin=10, last=10), 150, [*range(10, 121, 10), 135], [*range(15, 116, 10), 125]),
        (ACDC(every=5, stop=185, begin=10, last=10), 200, [*range(10, 171, 10), 185], [*range(15, 166, 10), 175]),
        # CIFAR-100: prune (10, 171, 40), restore (30, 161, 40)
        (ACDC(every=0.1, stop=0.85, begin=0.05), 200, [*range(10, 171, 40)], [*range(30, 161, 40)]),
    ],
)
def test_the_phases_are_those_of_the_authors(acdc, epochs, prunes, restores):
    assert phases(acdc, epochs) == (prunes, restores)


def test_a_compression_keeps_the_largest_and_a_decompression_lets_all_live():
    acdc = ACDC(every=2, stop=8, begin=2, last=2)  # sparse from 2, dense from 4, sparse from 8
    a = param([8.0, 1, 7, 2], [1] * 4, name="a", target=2, scope="global")
    b = param([6.0, -5, 4, 3], [1] * 4, name="b", target=2, scope="global")
    assert after(acdc, a, b, step=2) == [[0, 2], [0, 1]]
    assert after(acdc, a, b, step=4) == [[0, 1, 2, 3]] * 2
    b.place.module.weight = nn.Parameter(torch.tensor([6.0, -9, 10, 7.5]))  # 8, 9, 10 and 7.5 are largest
    assert after(acdc, a, b, step=8) == [[0], [1, 2, 3]]
    weak = param([0.4, 0.3, 0.2, 0.1], [1] * 4, name="a", target=2, scope="global")
    assert after(acdc, weak, b, step=8) == [[0], [1, 2, 3]]  # no layer dies
    each = param([0.4, 0.3, 0.2, 0.1], [1] * 4, name="a", target=2)
    assert after(acdc, each, step=8) == [[0, 1]]


def test_what_comes_back_starts_at_zero_and_without_momentum():
    model = Slopes([4.0, 3, 2, 1])
    model.slopes[0] = torch.tensor([[-0.5, -0.5, -0.5, -4.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=1.0)
    sparsifier = Sparsifier(model, ACDC(every=1, stop=4, begin=1, last=1), 0.5, optimizers=[optimizer])
    weight = model.layers[0].weight
    seen = [
        (live(sparsifier.masks["layers.0.weight"]), weight.detach().flatten().tolist())
        for _ in steps(model, optimizer, 5)
    ]
    momentum = optimizer.state[weight]["momentum_buffer"].flatten().tolist()
    assert [mask for mask, _ in seen] == [[0, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 3], [0, 3]]
    # weights grow by their momentum, which grows by .5 (4 for the last) a step
    assert [row for _, row in seen] == [
        [4.5, 0, 0, 5],  # pruned: 3.5 and 2.5
        [5.5, 0, 0, 13],  # they live again, at zero
        [7, 0.5, 0.5, 25],  # the momentum of what stayed is 1.5 and 12, theirs began anew
        [9, 0, 0, 41],
        [11.5, 0, 0, 61],
    ]
    assert momentum == [-2.5, 0, 0, -20]


def test_acdc_starts_dense_and_says_when_its_density_is_final():
    engine = Sparsifier(nn.Linear(4, 4), ACDC(every=2, stop=8, begin=2, last=2), 0.25)
    assert engine.density() == 1.0
    assert [engine.algorithm.settled(step) for step in (2, 7, 8, 9)] == [False, False, True, True]
    assert not any(engine.algorithm.needs_gradient(step) for step in range(10))


def test_a_period_may_be_an_epoch_and_a_short_run_still_has_both_phases():
    plan = ACDC(every="epoch", begin=4, stop=20, last=4).planned(24, 4)
    assert [step for step in range(1, 25) if plan.due(step)] == [4, 8, 12, 16, 20]
    for total in (1, 2, 3, 5):
        plan = ACDC().planned(total, None)
        assert plan.due(plan.stop)
        assert plan.compressed(plan.stop)
        assert not plan.compressed(plan.begin - 1)
    rounded = ACDC(last=0.75).planned(5, None)  # 1, 4 and 4 steps would not fit
    assert (rounded.begin, rounded.last, rounded.stop) == (1, 3, 4)
    assert "ends at step 1, before the final density at stop=2" in ACDC().planned(1, None).too_short(1)
    assert ACDC().planned(2, None).too_short(2) == ""


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"begin": 0}, "begin must be optimizer steps (an int from 1) or a share of the run (a float in (0, 1]), got "),
        ({"last": 1.5}, "last must be optimizer steps (an int from 1) or a share of the run (a float in (0, 1]), got "),
        ({"begin": 0.8}, "begin and the last dense phase must fit before stop, got begin=0.8, last=0.1, stop=0.85"),
        ({"every": 1.5}, "every must be a positive number of optimizer steps or 'epoch', got 1.5, which as a share of"),
        ({"every": 0}, "every must be a positive number of optimizer steps or 'epoch', got 0"),
    ],
)
def test_what_acdc_cannot_do_is_refused(settings, text):
    with pytest.raises(ValueError) as error:
        ACDC(**settings)
    assert text in str(error.value)


def test_training_flops_of_acdc_are_averaged_over_its_phases():
    # dense for 10, six times 5, and 10 of 100 epochs: half of the run
    assert ACDC().training_flops(0.1, 1.0) == pytest.approx(3 * (0.5 * 0.1 + 0.5), rel=1e-3)
    assert ACDC(stop=850).training_flops(0.1, 1.0) == pytest.approx(0.3)


# ---- Patterns


MOVING = [
    GraNet(every=2, stop=13, end=8, initial=0.75),
    MEST(variant="em_s", every=2, stop=9, fraction=StagedSchedule((1.0, 0.5, 0.0), (0.5, 1.0))),
    ACDC(every=2, begin=2, stop=10, last=2),
    DSR(every=2, stop=13, threshold=0.2),
]
# N:M fixes the density of each layer: there no budget can move
PATTERNED = [(a, p) for a in MOVING for p in (FanIn(), Block(1, 2), NM(1, 4)) if not (a.moves_budget and p == NM(1, 4))]


@pytest.mark.parametrize(("algorithm", "pattern"), PATTERNED, ids=lambda x: str(x).partition("(")[0])
def test_patterns_hold_after_every_update(algorithm, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = pattern.fixed_density() or 0.25
    allocation = "uniform" if isinstance(algorithm, MEST) else None
    sparsifier = Sparsifier(model, algorithm, wanted, pattern=pattern, allocation=allocation, optimizers=[optimizer])
    masks = []
    for step in range(14):
        optimizer.zero_grad()
        model(torch.randn(4, 16, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        masks.append(torch.cat([mask.flatten() for mask in sparsifier.masks.values()]))
        assert all(pattern.holds(mask) for mask in sparsifier.masks.values()), step
    assert sum(not torch.equal(*pair) for pair in pairwise(masks)) >= 3
    assert sparsifier.density() == pytest.approx(0.25)
