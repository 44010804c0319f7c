"""Budgets that move between layers (SparseMomentum) or over time (GMP), worked by hand on tables of a few weights."""

import pytest
import torch
from torch import nn

from lightning_sparse import GMP, SparseMomentum, Sparsifier
from lightning_sparse.core.algorithm import keep_budget
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Unstructured
from lightning_sparse.core.schedules import ConstantSchedule
from lightning_sparse.core.select import Target

HALF = SparseMomentum(every=1, stop=9, fraction=ConstantSchedule(0.5))


def param(name, weight, mask, momentum=None, target=None, scope="layer"):
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    target = target or sum(mask)
    place = Target(name, module, "weight")
    p = SparseParam(place, density=target / len(mask), target=target, pattern=Unstructured(), scope=scope)
    p.set_mask(torch.tensor(mask).bool())
    if momentum is not None:
        p.state["momentum"] = torch.tensor(momentum, dtype=torch.float32)
    return p


def after(algorithm, *params, step=1):
    """Indices that live after an update, a list for each layer; a layer that is not named keeps its mask."""
    masks = algorithm.update(params, step)
    return [masks.get(p.name, p.mask).nonzero().flatten().tolist() for p in params]


# a: four of eight live (0, 1, 2, 7), their mean momentum is 4; b: four live (0 to 3), their mean momentum is 1 (the
# dead do not count: with them the means would be 2.8 and 3.1)
A = ("a", [0.5, -0.1, 0.3, 0, 0, 0, 0, 0.2], [1, 1, 1, 0, 0, 0, 0, 1], [4, -4, 4, 1, -3, 2, 0.5, 4])
B = ("b", [1, 0.9, 0.1, 0.2, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, -1, 1, 0.1, 0.2, 0.3, -20])


def test_sparse_momentum_deals_what_was_dropped_by_mean_momentum():
    # each drops two (a: 1, 7; b: 2, 3); 4 : 1 of four is 3.2 and 0.8, so three and one;
    # a grows the dead of largest |momentum| (4: 3, 5: 2, 3: 1), b grows 7 (20)
    assert after(HALF, param(*A), param(*B)) == [[0, 2, 3, 4, 5], [0, 1, 7]]


def test_what_a_layer_cannot_take_moves_on():
    # a: six of eight live, drops three (5, 4, 3); b drops two; five at 4 : 1 would be 4 and 1, but a has room for
    # two: it grows both of its dead, b the other three
    full = ("a", [6, 5, 4, 3, 2, 1, 0, 0], [1] * 6 + [0] * 2, [4] * 8)
    assert after(HALF, param(*full), param(*B)) == [[0, 1, 2, 6, 7], [0, 1, 5, 6, 7]]


def test_the_authors_rule_makes_room_of_what_was_dropped():
    # the same, but a may take its dropped ones too: five entries compete for four places (all have momentum 4, the
    # lower index wins), and b grows one of 2 to 7
    algorithm = SparseMomentum(every=1, stop=9, fraction=ConstantSchedule(0.5), regrow_dropped=True)
    full = ("a", [6, 5, 4, 3, 2, 1, 0, 0], [1] * 6 + [0] * 2, [4] * 8)
    assert after(algorithm, param(*full), param(*B)) == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 7]]


def test_without_room_for_all_each_layer_exchanges_what_it_can():
    # seven of eight live in both: three each would go, two in all can be grown
    full = [8, 7, 6, 5, 4, 3, 2, 0], [1] * 7 + [0], [1] * 8
    assert after(HALF, param("a", *full), param("b", *full)) == [[0, 1, 2, 3, 4, 5, 7]] * 2


def test_a_layer_that_never_had_a_gradient_keeps_its_mask_and_its_budget():
    assert after(HALF, param(*A), param(*B[:3])) == [[0, 2, 4, 5], [0, 1, 2, 3]]


def test_no_layer_dies_when_everything_is_exchanged():
    algorithm = SparseMomentum(every=1, stop=9, fraction=ConstantSchedule(1.0))
    idle = ("b", B[1], [1, 1, 0, 0, 0, 0, 0, 0], [0] * 8)
    a, b = after(algorithm, param("a", [3, 2] + [0] * 10, [1, 1] + [0] * 10, [1] * 12), param(*idle))
    assert len(a) + len(b) == 4
    assert len(b) >= 1


def test_momentum_is_a_running_average_of_dense_gradients():
    # 0.9 m + 0.1 g: g = 1 gives .1, then g = 3 gives .09 + .3
    p = param("a", [1.0, 0.0], [1, 0])
    for g in (1.0, 3.0):
        p.dense_grad = torch.full((2,), g)
        SparseMomentum().observe([p], 1)
    assert p.state["momentum"].tolist() == pytest.approx([0.39, 0.39])
    p.state.clear()
    p.dense_grad = torch.full((2,), 8.0)
    SparseMomentum(beta=0.75).observe([p], 1)
    assert p.state["momentum"].tolist() == [2.0, 2.0]


def test_momentum_is_wanted_at_every_step_until_masks_stop():
    assert [HALF.needs_gradient(step) for step in (1, 9, 10)] == [True, True, False]


class Two(nn.Module):
    """Two layers without bias whose gradients are what is set in ``slopes``."""

    def __init__(self, *rows):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(len(row), 1, bias=False) for row in rows)
        for layer, row in zip(self.layers, rows, strict=True):
            layer.weight.data = torch.tensor([row], dtype=torch.float32)
        self.slopes = [torch.zeros(1, len(row)) for row in rows]

    def forward(self):
        return sum((layer.weight * slope).sum() for layer, slope in zip(self.layers, self.slopes, strict=True))


def steps(model, optimizer, n):
    for _ in range(n):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        yield


def test_sparse_momentum_in_a_loop_keeps_the_total_and_moves_it():
    # live by magnitude: 4 and 4; the second layer has all the momentum: everything dropped goes there while it has room
    model = Two([8, 7, 6, 5, 0, 0, 0, 0], [8, 7, 6, 5, 0, 0, 0, 0, 0, 0, 0, 0])
    model.slopes[1] = torch.ones(1, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(model, HALF, {"layers.0": 0.5, "layers.1": 1 / 3}, init="magnitude", optimizers=[optimizer])
    counts = [[int(mask.sum()) for mask in sparsifier.masks.values()] for _ in steps(model, optimizer, 3)]
    # (4, 4): two each go, four come to the second; (2, 6): one and three; (1, 7): a single weight has no half
    assert counts == [[2, 6], [1, 7], [1, 7]]


# ---- GMP: density d + (1 - d) (1 - t / stop)^3


@pytest.mark.parametrize(
    ("every", "stop", "target", "expected"),
    [
        # d = 1/4 of 16: 4 + 12 (3/4, 1/2, 1/4, 0)^3 = 9.06, 5.5, 4.19, 4; 5.5 is rounded to the even 6
        (2, 8, 4, {2: 9, 4: 6, 6: 4, 8: 4}),
        # 8 + 8 (4/7, 1/7, 0)^3 = 9.49, 8.02, 8: every does not divide stop, and the end is reached all the same
        (3, 7, 8, {3: 9, 6: 8, 7: 8}),
        # 2 + 14 (2/7, 0)^3 = 2.33, 2
        (5, 7, 2, {5: 2, 7: 2}),
        (50, 7, 2, {7: 2}),
    ],
)
def test_pruning_follows_its_schedule_to_the_integer(every, stop, target, expected):
    model = Two([float(i) for i in range(16, 0, -1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(model, GMP(every=every, stop=stop), target / 16, optimizers=[optimizer])
    count = 16
    for step, _ in enumerate(steps(model, optimizer, stop + 3), start=1):
        count = expected.get(step, count)
        assert sparsifier.masks["layers.0.weight"].flatten().nonzero().flatten().tolist() == list(range(count)), step


def test_pruning_begins_after_begin():
    # 4 + 12 (1 - (t - 4) / 4)^3 at t = 6 and 8: 5.5 -> 6, and 4
    gmp = GMP(every=2, begin=4, stop=8)
    assert [step for step in range(1, 12) if gmp.due(step)] == [6, 8]
    p = param("a", [float(i) for i in range(16, 0, -1)], [1] * 16, target=4)
    assert after(gmp, p, step=6) == [[0, 1, 2, 3, 4, 5]]
    assert after(gmp, p, step=8) == [[0, 1, 2, 3]]


def test_pruned_weights_do_not_come_back():
    model = Two([8.0, -7, 6, -5, 4, -3, 2, -1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    model.slopes[0] = torch.tensor([[-1.0, 1, -1, 1, 9, -9, 9, 9]])  # dead ones would grow fastest
    sparsifier = Sparsifier(model, GMP(every=1, stop=6), 0.25, optimizers=[optimizer])
    masks = [torch.ones(1, 8).bool()]
    for _ in steps(model, optimizer, 8):
        masks.append(sparsifier.masks["layers.0.weight"])
        assert not (masks[-1] & ~masks[-2]).any()
    assert int(masks[-1].sum()) == 2


def test_a_live_weight_at_zero_outlives_a_dead_one():
    p = param("a", [0.0, 0.0, 3, 0.0], [0, 0, 1, 1], target=2)  # both dead ones have the lower index
    assert after(GMP(every=2, stop=8), p, step=8) == [[2, 3]]


def test_pruning_shares_the_schedules_integer_over_layers():
    # at 4 of 8: 1/8 of the way is left; 2 + 6/8 = 2.75 and 4 + 12/8 = 5.5 are 8.25 in all, so 8: floors 2 and 5, and
    # the larger remainder is the first's
    a = param("a", [float(i) for i in range(8, 0, -1)], [1] * 8, target=2)
    b = param("b", [float(i) for i in range(16, 0, -1)], [1] * 16, target=4)
    assert [len(kept) for kept in after(GMP(every=2, stop=8), a, b, step=4)] == [3, 5]


def test_a_global_budget_is_ranked_over_all_layers_and_no_layer_dies():
    a = param("a", [4, 3, 2, 1], [1] * 4, target=2, scope="global")
    b = param("b", [8, 7, 6, 5], [1] * 4, target=2, scope="global")
    # the four largest are all in b; a keeps one, its largest
    assert after(GMP(every=2, stop=8), a, b, step=8) == [[0], [0, 1, 2]]
    mixed = param("c", [8, 1, 6, 1], [1] * 4, target=2, scope="global")
    assert after(GMP(every=2, stop=8), a, mixed, step=8) == [[0, 1], [0, 2]]


def test_a_budget_for_the_living_leaves_dead_weights_dead():
    a = param("a", [9, 3, 2, 1], [0, 1, 1, 1], target=2)
    masks = keep_budget([a], {"a": a.weight.abs()}, [2], live_only=True)
    assert masks["a"].tolist() == [False, True, True, False]
    assert keep_budget([], {}, []) == {}
