"""Dropping by what a weight contributes to the loss, worked by hand."""

import pytest
from tables import after, param

from lightning_sparse import MEST, SET, ConstantSchedule, RigL

HALF = ConstantSchedule(0.5)
# |w g| of the live weights 0 to 3: 9 * .1 = .9, 1 * 2 = 2, 4 * .5 = 2, .5 * 9 = 4.5; by |w| 3 and 1 would go
WEIGHT, MASK, GRAD = [9, 1, 4, 0.5, 0, 0], [1, 1, 1, 1, 0, 0], [0.1, 2, -0.5, 9, 3, 1]


def test_what_contributes_least_to_the_loss_is_dropped():
    rule = RigL(every=1, stop=9, fraction=ConstantSchedule(0.25), drop="contribution")
    assert after(rule, param(WEIGHT, MASK, GRAD)) == [[1, 2, 3, 4]]


def test_ties_keep_the_lower_index():
    # 1 and 2 contribute 2 each: of half, 0 goes and 2
    rule = RigL(every=1, stop=9, fraction=HALF, drop="contribution")
    assert after(rule, param(WEIGHT, MASK, GRAD)) == [[1, 3, 4, 5]]


def test_magnitude_is_the_default():
    assert after(RigL(every=1, stop=9, fraction=HALF), param(WEIGHT, MASK, GRAD)) == [[0, 2, 4, 5]]


def test_set_asks_for_the_gradient_only_where_its_score_has_one():
    assert [SET(every=3, stop=9, drop="contribution").needs_gradient(step) for step in (2, 3)] == [False, True]
    assert not SET(every=3, stop=9).needs_gradient(3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RigL(drop="small"), "drop must be 'magnitude' or 'contribution', got 'small'"),
        (lambda: MEST(drop="contribution"), "MEST has a score of its own"),
        (lambda: SET(variant="original", drop="contribution"), "drops by magnitude, sign by sign"),
    ],
)
def test_a_score_that_cannot_be_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
