"""Patterns against every mask that there is, and against slow restatements where scores tie."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Size

from lightning_sparse import NM, Block, Channel, FanIn

INF, NAN = float("inf"), float("nan")

# What belongs together, by hand, as lists of flat indices: (outputs, inputs) = (2, 4) counts 0 1 2 3 / 4 5 6 7 and
# (2, 2, 3) counts 0 1 2 | 3 4 5 / 6 7 8 | 9 10 11, the kernel last.
CASES = {
    "2:4 of a matrix": (NM(2, 4), (2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    "3:4 of a matrix": (NM(3, 4), (2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]),
    "1:2 of a matrix": (NM(1, 2), (2, 4), [[0, 1], [2, 3], [4, 5], [6, 7]]),
    "1:2 of a convolution": (NM(1, 2), (2, 2, 3), [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]),
    "fan-in of a matrix": (FanIn(), (3, 3), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
    "fan-in of a convolution": (FanIn(), (2, 2, 3), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
    "blocks of a matrix": (Block(2, 2), (2, 4), [[0, 1, 4, 5], [2, 3, 6, 7]]),
    "flat blocks of a matrix": (Block(1, 2), (3, 4), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]),
    "blocks of a convolution": (Block(2, 1), (2, 2, 3), [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]),
    "channels of a matrix": (Channel(), (3, 2), [[0, 1], [2, 3], [4, 5]]),
    "channels of a convolution": (Channel(), (2, 2, 3), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
}


def holds(case, mask, k):
    """Whether a flat 0/1 mask of ``k`` entries has the pattern."""
    pattern, _, together = CASES[case]
    counts = [sum(mask[i] for i in group) for group in together]
    if isinstance(pattern, NM):
        return all(count >= pattern.n for count in counts)
    if isinstance(pattern, FanIn):
        return all(count in (k // len(counts), k // len(counts) + 1) for count in counts)
    return all(count in (0, len(group)) for count, group in zip(counts, together, strict=True))


@cache
def subsets(size):
    """Every mask of so many entries, as rows of an array."""
    return np.array(list(product((False, True), repeat=size)))


@cache
def every(case):
    """Every mask in the pattern, as rows of an array."""
    masks = subsets(Size(CASES[case][1]).numel())
    return masks[[holds(case, mask, sum(mask)) for mask in masks.tolist()]]


def best(case, kept, values, k, among):
    """The mask in the pattern with the largest sum, among all that there are; None where there is none."""
    masks = every(case)
    fits = (masks.sum(1) == k) & (masks >= kept).all(1) & (masks <= (kept | among)).all(1)
    return masks[fits][np.argmax(masks[fits] @ values)] if fits.any() else None


@st.composite
def questions(draw):
    """A case, scores whose sums are all different, and what may live."""
    case = draw(st.sampled_from(list(CASES)))
    size = Size(CASES[case][1]).numel()
    values = 2.0 ** np.array(draw(st.permutations(range(size))))
    among = np.array(draw(st.lists(st.sampled_from([True, True, True, False]), min_size=size, max_size=size)))
    return case, values, among, draw(st.integers(0, size))


def shaped(case, array):
    return torch.tensor(array).view(CASES[case][1])


def answer(case, method, *arguments):
    """Flat, or None where it is refused."""
    try:
        return getattr(CASES[case][0], method)(*arguments).flatten().numpy()
    except ValueError:
        return None


def assert_same(found, expected):
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, expected)


@given(questions())
@settings(deadline=None, max_examples=150)
def test_what_is_kept_is_the_best_of_all_masks_in_the_pattern(question):
    case, values, among, k = question
    found = answer(case, "keep", shaped(case, values), k, shaped(case, among))
    assert_same(found, best(case, np.zeros_like(among), values, k, among))


@given(questions(), st.data())
@settings(deadline=None, max_examples=150)
def test_what_is_filled_is_the_best_of_all_masks_that_hold_what_was_kept(question, data):
    case, values, among, k = question
    before = every(case)[data.draw(st.integers(0, len(every(case)) - 1))]
    kept = before.copy()
    if not CASES[case][0].tiled:  # groups may be short
        kept &= np.array(data.draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept))))
    found = answer(case, "fill", shaped(case, kept), shaped(case, values), k, shaped(case, among))
    assert_same(found, best(case, kept, values, k, among))


@given(questions(), st.data())
@settings(deadline=None, max_examples=150)
def test_what_is_shrunk_is_the_best_that_can_be_completed_from_what_is_spare(question, data):
    case, values, _, _ = question
    pattern, _, together = CASES[case]
    masks = every(case)[1:]  # the first has no live weight
    live = masks[data.draw(st.integers(0, len(masks) - 1))]
    spare = ~live
    k = data.draw(st.integers(0, int(live.sum())))
    # by enumeration: parts of the mask from which `spare` can restore the count, whole units or enough in each group
    parts = subsets(len(live))
    parts = parts[~(parts & ~live).any(1)]
    for group in together:
        had, free = live[group].sum(), spare[group].sum()
        inside = parts[:, group].sum(1)
        if pattern.tiled:
            parts = parts[(inside == 0) | (inside == len(group))]
        else:
            parts = parts[inside + free >= (min(had, pattern.n) if isinstance(pattern, NM) else had)]
    count = min(n for n in parts.sum(1) if n >= k)
    expected = max(parts[parts.sum(1) == count], key=lambda part: part @ values)
    found = answer(case, "shrink", shaped(case, values), k, shaped(case, live), shaped(case, spare))
    assert_same(found, expected)
    if live.sum() - count <= spare.sum():  # and it is completed
        filled = answer(case, "fill", shaped(case, found), shaped(case, values), int(live.sum()), shaped(case, spare))
        assert filled.sum() == live.sum()
        assert holds(case, filled, int(live.sum()))
        assert not (filled & ~found & ~spare).any()


@given(questions(), st.data())
@settings(deadline=None, max_examples=100)
def test_without_a_limit_on_growth_single_weights_are_dropped_wherever_they_are(question, data):
    case, values, among, _ = question
    k = data.draw(st.integers(0, int(among.sum())))
    pattern = CASES[case][0]
    assume(not pattern.tiled)
    found = answer(case, "shrink", shaped(case, values), k, shaped(case, among))
    expected = among & (values >= np.sort(values[among])[::-1][k - 1] if k else False)
    np.testing.assert_array_equal(found, expected)


# ---- Ties, NaN and infinities: a slow restatement that sorts


def order(values, indices):
    """Best first; ties by the lower index, NaN with minus infinity."""
    return sorted(indices, key=lambda i: (INF if values[i] != values[i] else -values[i], i))


def slow(case, values, k, among):
    pattern, _, together = CASES[case]
    if pattern.tiled:
        whole = [group for group in together if all(among[i] for i in group)]
        worth = {group[0]: sum(values[i] for i in group) for group in whole}
        chosen = order(worth, worth)[: k // len(together[0])]
        return sorted(i for group in whole if group[0] in chosen for i in group)
    each = pattern.n if isinstance(pattern, NM) else k // len(together)
    kept = [i for group in together for i in order(values, [i for i in group if among[i]])[:each]]
    left = [i for i in range(len(values)) if among[i] and i not in kept]
    if isinstance(pattern, FanIn):  # the next of each row compete; ties go to the lower row
        left = [order(values, [i for i in group if i in left])[0] for group in together if set(group) & set(left)]
    return sorted(kept + order(values, left)[: k - len(kept)])


@given(questions(), st.data())
@settings(deadline=None, max_examples=100)
def test_ties_go_to_the_lower_index_and_nan_ranks_last(question, data):
    case, _, among, _ = question
    k = int(every(case)[data.draw(st.integers(0, len(every(case)) - 1))].sum())
    numbers = [-1.0, 0.0, -0.0, 0.5, 0.5, INF, -INF, NAN]
    values = np.array(data.draw(st.lists(st.sampled_from(numbers), min_size=len(among), max_size=len(among))))
    found = answer(case, "keep", shaped(case, values), k, shaped(case, among))
    assume(found is not None)
    assert found.nonzero()[0].tolist() == slow(case, values.tolist(), k, among.tolist())


def test_rows_that_compete_with_nan_and_minus_infinity_tie():
    scores = torch.tensor([[-1.0, 0.0, NAN], [-1.0, -1.0, -1.0], [-1.0, 0.0, -INF]])
    among = torch.tensor([[True, False, True], [True, True, True], [True, False, True]])
    # one each is -1; of the two that are left the second row's -1 is best, then NaN before -inf: the lower row
    assert FanIn().keep(scores, 5, among).tolist() == [[True, False, True], [True, True, False], [True, False, False]]


@pytest.mark.parametrize("case", CASES)
def test_a_pattern_knows_its_masks(case):
    pattern, shape, _ = CASES[case]
    known = {tuple(mask) for mask in every(case)}
    size = Size(shape).numel()
    for mask in product((False, True), repeat=size):
        expected = mask in known
        assert pattern.holds(torch.tensor(mask).view(shape)) == expected, mask
        if size > 9 and sum(mask) > 3:
            break
