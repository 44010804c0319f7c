"""GraNet, whose density falls while masks move, worked by hand."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tables import after, param
from torch import nn

from lightning_sparse import GraNet, Sparsifier
from lightning_sparse.core.schedules import ConstantSchedule

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())["granet"]


def granet(fraction=0.5, end=3, **settings):
    return GraNet(**{"every": 1, "stop": 99, "end": end, "fraction": ConstantSchedule(fraction), **settings})


def ramped(p, start):
    p.state["start"] = torch.tensor(start)
    return p


# Six of eight live and two are planned: after the first of three steps 2 + 4 (2/3)^3 = 3.19, so three stay (0, 1, 2);
# half of them, one, is exchanged: 2 goes.
TABLE = {"weight": [6, 5, 4, 3, 2, 1, 0, 0], "mask": [1] * 6 + [0] * 2, "grad": [0, 0, 9, 8, 7, 7, -2, 1], "target": 2}


def test_granet_prunes_to_the_ramp_and_regenerates():
    assert after(granet(), ramped(param(**TABLE), 6)) == [[0, 1, 6]]


def test_the_switch_lets_what_was_just_pruned_compete():
    assert after(granet(regrow_dropped=True), ramped(param(**TABLE), 6)) == [[0, 1, 2]]
    strong = {**TABLE, "grad": [0, 0, 3, 8, 7, 7, -2, 1]}  # 3 was pruned by the ramp
    assert after(granet(regrow_dropped=True), ramped(param(**strong), 6)) == [[0, 1, 3]]


def test_granet_from_dense_has_nothing_to_grow_at_first():
    p = param([8.0, 7, 6, 5, 4, 3, 2, 1], [1] * 8, [9] * 8, target=2)
    assert after(granet(), ramped(p, 8)) == [[0, 1, 2, 3]]  # 2 + 6 * 8/27 = 3.78


def test_after_the_ramp_regeneration_goes_on_at_the_planned_count():
    p = ramped(param([6, 5, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 3, 2, 1], target=2), 4)
    assert after(granet(), p, step=7) == [[0, 3]]
    assert after(granet(), p, step=3) == [[0, 3]]  # the ramp ends here


def test_granet_prunes_over_all_layers_together_and_regenerates_in_each():
    # six of twelve live, two planned for each: at the end four stay, 9 8 7 of a and 6 of b; half of three is one, half
    # of one none
    a = ramped(param([9, 8, 7, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 3, 2], name="a", target=2, scope="global"), 3)
    b = ramped(param([6, 5, 4, 0, 0, 0], [1, 1, 1, 0, 0, 0], [9] * 6, name="b", target=2, scope="global"), 3)
    assert after(granet(), a, b, step=3) == [[0, 1, 4], [0]]
    weak = ramped(param([3, 2, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [9] * 6, name="b", target=1, scope="global"), 3)
    a.target = 2
    assert after(granet(0.0), a, weak, step=3) == [[0, 1], [0]]  # three stay, all of a: but no layer dies


def test_with_layers_that_do_not_compete_each_falls_to_its_own_share():
    a = ramped(param([9, 8, 7, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6, name="a", target=2), 3)
    b = ramped(param([6, 5, 4, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6, name="b", target=2), 3)
    assert after(granet(0.0), a, b, step=3) == [[0, 1], [0, 1]]


def test_granet_follows_the_golden_ramp_to_the_integer():
    model = nn.Linear(200, 200, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    algorithm = GraNet(
        every=25, stop=130, end=100, initial=GOLDEN["initial_density"], fraction=ConstantSchedule(0.5)
    )
    sparsifier = Sparsifier(model, algorithm, GOLDEN["final_density"], optimizers=[optimizer])
    counts, masks = [sparsifier.params["weight"].live], []
    for step in range(1, 131):
        optimizer.zero_grad()
        model(torch.randn(4, 200, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        if step % 25 == 0:
            counts.append(sparsifier.params["weight"].live)
            masks.append(sparsifier.masks["weight"])
    golden = [round(40_000 * (1 - sparsity)) for sparsity in GOLDEN["sparsity"].values()]
    assert counts == [*golden, golden[-1]] == [20_000, 10_750, 6000, 4250, 4000, 4000]
    # half of the weights are new at each update, as far as it is not the ramp that takes them
    assert [int((new & ~old).sum()) for old, new in pairwise(masks)] == [3000, 2125, 2000, 2000]


def test_granet_starts_from_the_shares_of_erk():
    # 16 and 8 weights whose dimensions sum to 8 and 6: half of 24 is 12 = 12/14 (8 + 6), so 6.86 and 5.14
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    for allocation in (None, "erk"):
        engine = Sparsifier(model, GraNet(every=1, stop=9, end=5), 0.25, allocation=allocation)
        assert [p.live for p in engine.params.values()] == [7, 5]
    engine = Sparsifier(model, GraNet(every=1, stop=9, end=5), 0.25, allocation="uniform")
    assert [p.live for p in engine.params.values()] == [8, 4]


def test_no_layer_starts_below_its_own_share():
    # ten of 6, 6 and 2 weights are 4.29, 4.29 and 1.43, so 4, 4 and 2; eleven would be 4.71, 4.71 and 1.57: 5, 5 and 1
    model = nn.Sequential(*(nn.Linear(n, 1, bias=False) for n in (6, 6, 2)))
    algorithm = GraNet(every=1, stop=9, end=5, initial=11 / 14)
    engine = Sparsifier(model, algorithm, 10 / 14, allocation="uniform")
    assert [p.target for p in engine.params.values()] == [4, 4, 2]
    assert [p.live for p in engine.params.values()] == [5, 4, 2]


def test_a_live_weight_at_zero_outlives_a_dead_one():
    p = ramped(param([0.0, 0.0, 0.0, 3, 0.0], [0, 0, 1, 1, 1], [0] * 5, target=2), 3)
    assert after(granet(0.0), p, step=3) == [[2, 3]]


def test_a_density_above_the_initial_one_makes_the_ramp_level():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    engine = Sparsifier(model, GraNet(every=1, stop=9, end=5, initial=0.3), 0.75)
    assert engine.density() == 0.75


def test_granet_waits_for_begin_and_reaches_its_density_at_end():
    plan = GraNet(every=10, begin=0.1, end=0.55, stop=1.0).planned(100, None)
    assert [step for step in range(1, 101) if plan.due(step)] == [20, 30, 40, 50, 55, 60, 70, 80, 90]
    assert [plan.settled(step) for step in (54, 55, 99)] == [False, True, True]
    assert [step for step in range(1, 101) if plan.needs_gradient(step)][:2] == [20, 30]
    assert GraNet().planned(160, None).end == 110  # of the authors' 160 epochs
    assert GraNet().planned(1, None).planned(1, None).end == 1


def test_a_run_that_ends_before_the_ramp_is_told():
    assert "ends at step 50, before the final density at end=60; give a smaller end=" in granet(end=60).too_short(50)
    assert granet(end=60).too_short(60) == ""


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"initial": 0.0}, "initial must be a density in (0, 1], got 0.0"),
        ({"initial": 1.5}, "initial must be a density in (0, 1], got 1.5"),
        ({"begin": -1}, "begin must be optimizer steps or a share of the run in [0, 1], got -1"),
        ({"end": 1.5}, "end must be optimizer steps or a share of the run in [0, 1], got 1.5"),
        ({"begin": 0.7}, "begin must come before end, got begin=0.7, end=0.6875"),
        ({"begin": 5, "end": 5}, "begin must come before end, got begin=5, end=5"),
        ({"end": 0.9, "stop": 0.8}, "end must come before stop, got end=0.9, stop=0.8"),
    ],
)
def test_what_granet_cannot_do_is_refused(settings, text):
    with pytest.raises(ValueError) as error:
        GraNet(**settings)
    assert text in str(error.value)


def test_training_flops_of_granet_average_the_ramp():
    # .1 in the end, .5 at the start: .4 * .6875 / 4 on top; then a dense gradient in 1001 steps
    assert GraNet().training_flops(0.1, 1.0) == pytest.approx((3 * 0.16875 * 1000 + 2 * 0.16875 + 1) / 1001)
    assert GraNet(begin=0.1, every="epoch").training_flops(0.1, 1.0) == pytest.approx(3 * (0.1 + 0.04 + 0.05875))
    assert GraNet(end=500, every="epoch").training_flops(0.1, 1.0) == pytest.approx(0.3)
