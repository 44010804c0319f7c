"""RigL, SET and Static on tables of a few weights, worked by hand (moving budgets: core/test_moving_budgets.py)."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sparse import SET, DropGrow, RigL, Sparsifier, Static
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Unstructured
from lightning_sparse.core.schedules import ConstantSchedule, CosineSchedule
from lightning_sparse.core.select import Target

TABLE = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())["rigl_update"]
HALF = ConstantSchedule(0.5)


def param(weight, mask, grad=None, name="w", step=1):
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    live = sum(mask)
    p = SparseParam(Target(name, module, "weight"), density=live / len(mask), target=live, pattern=Unstructured())
    p.set_mask(torch.tensor(mask).bool())
    p.dense_grad, p.step = None if grad is None else torch.tensor(grad, dtype=torch.float32), step
    return p


def live(mask):
    return mask.flatten().nonzero().flatten().tolist()


def after(algorithm, *params, step=1):
    """Indices that live after an update, a list for each layer."""
    masks = algorithm.update(params, step)
    return [live(masks[p.name]) for p in params]


def table(**changes):
    return param(**{key: TABLE[key] for key in ("weight", "mask", "grad")} | changes)


# ---- RigL: |w| of live 0 .5, 1 .1, 2 .3, 7 .2; half of four go: 1 and 7; |g| of dead 3 1, 4 3, 5 2, 6 .5, of 1 9


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest():
    (kept,) = after(RigL(every=1, stop=9, fraction=HALF), table())
    assert sorted({0, 1, 2, 7} - set(kept)) == TABLE["dropped"] == [1, 7]
    assert sorted(set(kept) - {0, 1, 2, 7}) == TABLE["grown_excluding_dropped"] == [4, 5]


def test_rigl_under_the_authors_rule_grows_what_it_just_dropped():
    (kept,) = after(RigL(every=1, stop=9, fraction=HALF, regrow_dropped=True), table())
    assert kept == sorted({0, 2, *TABLE["grown_authors_rule"]}) == [0, 1, 2, 4]


def test_the_authors_rule_holds_in_a_layer_that_is_almost_full():
    # seven live, half go: the smallest are 0, 1, 2; of 0, 1, 2 and the dead 7 the gradients of 2, 7 and 0 are largest
    p = param([0.1, 0.2, 0.3, 4, 5, 6, 7, 0], [1] * 7 + [0], [5, 1, 9, 0, 0, 0, 0, 7])
    assert after(RigL(every=1, stop=9, fraction=HALF, regrow_dropped=True), p) == [[0, 2, 3, 4, 5, 6, 7]]


class Golden(nn.Module):
    """The table as a model: the gradient of its output is the table's; its first mask by magnitude is the table's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1, bias=False)
        self.layer.weight.data = torch.tensor([TABLE["weight"]])

    def forward(self):
        return self.layer(torch.tensor([TABLE["grad"]]).float()).sum()


@pytest.mark.parametrize(
    ("regrow_dropped", "replace_step", "weights", "kept"),
    [
        (True, True, [0.5, -0.1, 0.3, 0, 0, 0, 0, 0], [0, 1, 2, 4]),  # the authors': 1 is back, and is still -0.1
        (False, True, [0.5, 0, 0.3, 0, 0, 0, 0, 0], [0, 2, 4, 5]),
        # a step of 0.1 moves 1 by -0.9 to -1.0 (dead weights feel nothing); then .2 and .3 are the smallest
        (False, False, [0.5, -1.0, 0, 0, 0, 0, 0, 0], [0, 1, 4, 5]),
        (True, False, [0.5, -1.0, 0, 0, 0, 0, 0, 0], [0, 1, 4, 5]),
    ],
)
def test_rigl_in_a_training_loop(regrow_dropped, replace_step, weights, kept):
    model = Golden()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    algorithm = RigL(every=1, stop=9, fraction=HALF, regrow_dropped=regrow_dropped, replace_step=replace_step)
    sparsifier = Sparsifier(model, algorithm, 0.5, init="magnitude", optimizers=[optimizer])
    assert live(sparsifier.masks["layer.weight"]) == [0, 1, 2, 7]
    model().backward()
    optimizer.step()
    assert live(sparsifier.masks["layer.weight"]) == kept
    torch.testing.assert_close(model.layer.weight.detach(), torch.tensor([weights]).float())


@pytest.mark.parametrize(("fraction", "exchanged"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
@pytest.mark.parametrize("algorithm", [RigL, SET])
def test_the_drop_fraction_is_a_share_of_the_live_weights(algorithm, fraction, exchanged):
    (kept,) = after(algorithm(every=1, stop=9, fraction=ConstantSchedule(fraction)), table())
    assert len(kept) == 4
    assert len(set(kept) - {0, 1, 2, 7}) == exchanged


@pytest.mark.parametrize(("step", "exchanged"), [(1, 3), (4, 2), (6, 0), (8, 0), (11, 0)])
def test_the_drop_fraction_follows_its_schedule_to_stop(step, exchanged):
    # (1 + cos(pi step / 8)) / 2 is .9619, .5, .1464, 0, and 0 after stop; of four, rounded down: 3, 2, 0, 0, 0
    (kept,) = after(RigL(every=1, stop=8, fraction=CosineSchedule(1.0)), table(), step=step)
    assert len(set(kept) - {0, 1, 2, 7}) == exchanged


def test_the_share_is_not_lost_to_floating_point():
    # 0.29 * 100 is 28.999999999999996
    p = param([1.0] * 100 + [0.0] * 100, [1] * 100 + [0] * 100, [1.0] * 200)
    (kept,) = after(RigL(every=1, stop=9, fraction=ConstantSchedule(0.29)), p)
    assert len(set(kept) - set(range(100))) == 29


def test_no_more_is_dropped_than_can_be_grown():
    # six of eight live, half would be three; only two are dead
    p = param([6, 5, 4, 3, 2, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0], [0] * 8)
    assert after(RigL(every=1, stop=9, fraction=HALF), p) == [[0, 1, 2, 3, 6, 7]]


def test_ties_in_drop_and_growth_go_to_the_lower_index():
    p = param([0.0, 0.2, 0.2, 0.2, 0.2, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0], [7, 7, 7, 7, 7, 7, 7, 7])
    assert after(RigL(every=1, stop=9, fraction=HALF), p) == [[0, 1, 2, 5]]


def test_layers_are_exchanged_each_by_itself():
    big = param([9, 8, 7, 6, 0, 0, 0, 0], [1] * 4 + [0] * 4, [0, 0, 0, 0, 1, 2, 3, 4], name="big")
    small, grown = after(RigL(every=1, stop=9, fraction=HALF), table(), big)
    assert (small, grown) == ([0, 2, 4, 5], [0, 1, 6, 7])


@dataclass(frozen=True)
class Saliency(DropGrow):
    """A user's own: drop what matters least to first order."""

    def drop_score(self, p):
        return (p.weight * p.grad).abs()

    def grow_score(self, p):
        return p.grad.abs()


def test_an_algorithm_of_ones_own_needs_two_scores():
    # |w g| of live: 0 0, 1 .9, 2 0, 7 0: the tie of 0, 2 and 7 leaves 0; grown 4, 5
    assert after(Saliency(every=1, stop=9, fraction=HALF), table()) == [[0, 1, 4, 5]]


# ---- SET


def test_set_drops_the_smallest_and_grows_any_dead_weight_alike():
    algorithm, times = SET(every=1, stop=9, fraction=HALF), dict.fromkeys(range(8), 0)
    for step in range(600):
        (kept,) = after(algorithm, table(grad=None, step=step))
        assert len(kept) == 4
        for i in kept:
            times[i] += 1
    assert [times[i] for i in (0, 1, 2, 7)] == [600, 0, 600, 0]
    # each of four dead weights is one of two grown: 300 of 600, standard deviation 12
    assert all(240 < times[i] < 360 for i in (3, 4, 5, 6))


def test_set_grows_by_seed_name_and_step_alone():
    algorithm = SET(every=1, stop=9, fraction=HALF)
    wide = {"weight": [1.0] * 20 + [0.0] * 80, "mask": [1] * 20 + [0] * 80}
    first = after(algorithm, param(**wide))
    torch.rand(3)
    assert after(algorithm, param(**wide)) == first
    assert after(algorithm, param(**wide, step=2)) != first
    assert after(algorithm, param(**wide, name="other")) != first


ORIGINAL = {"variant": "original", "every": 1, "stop": 9, "fraction": HALF}
# positive 0 .9, 1 .7, 2 .2, 3 .1; negative 4 -.8, 5 -.3; zero 6, 7; dead 8 to 11
SIGNS = {"weight": [0.9, 0.7, 0.2, 0.1, -0.8, -0.3, 0, 0, 0, 0, 0, 0], "mask": [1] * 8 + [0] * 4}


def test_original_set_drops_a_share_of_each_sign_and_every_zero():
    # half of each sign: 2, 3 and 5 go, and the zeros 6, 7; five of the nine that do not live are drawn
    seen = set()
    for step in range(60):
        (kept,) = after(SET(**ORIGINAL), param(**SIGNS, step=step))
        assert {0, 1, 4} <= set(kept)
        assert len(kept) == 8
        seen |= set(kept)
    assert seen == set(range(12))  # whatever was dropped may be drawn again


def test_original_set_that_may_not_regrow_keeps_the_best_of_what_would_go():
    # five go, four are dead: 5 (-.3) is the largest of 2, 3, 5, 6, 7 and stays
    assert after(SET(**ORIGINAL, regrow_dropped=False), param(**SIGNS)) == [[0, 1, 4, 5, 8, 9, 10, 11]]


def test_original_set_takes_the_share_of_each_sign_by_itself():
    # six positive and one negative, half of each rounded down: three and none
    p = param([6, 5, 4, 3, 2, 1, -1, 0, 0, 0, 0, 0], [1] * 7 + [0] * 5)
    (kept,) = after(SET(**ORIGINAL, regrow_dropped=False), p)
    assert set(kept) & set(range(7)) == {0, 1, 2, 6}


# ---- Static


def test_static_never_moves():
    assert not any(Static().due(step) or Static().needs_gradient(step) for step in range(200))
    assert Static().update([table()], 1) == {}


def test_the_first_mask_is_drawn_at_the_planned_count_or_by_magnitude():
    p = table()
    assert int(Static().init([p])["w"].sum()) == 4
    p.init = "magnitude"
    assert live(Static().init([p])["w"]) == [0, 1, 2, 7]
