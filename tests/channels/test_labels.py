"""Ties between elements, by hand, and against a slow search."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sparse.channels.labels import CONSTANT, Ties, components

edges = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


def searched(size, pairs):
    """The least element that can be reached, by walking."""
    near = {i: {i} for i in range(size)}
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    found = []
    for i in range(size):
        seen, front = {i}, [i]
        while front:
            front = [b for a in front for b in near[a] if b not in seen and not seen.add(b)]
        found.append(min(seen))
    return found


@settings(deadline=None)
@given(edges)
def test_components_are_those_that_a_walk_finds(pairs):
    left = [torch.tensor([a]) for a, _ in pairs]
    right = [torch.tensor([b]) for _, b in pairs]
    assert components(20, left, right).tolist() == searched(20, pairs)


def test_a_long_chain_is_one_component():
    ids = torch.arange(5000).flip(0)
    assert components(5000, [ids[1:]], [ids[:-1]]).eq(0).all()


def test_elements_are_numbered_from_one_without_gaps():
    ties = Ties()
    assert (ties.new(2).tolist(), ties.new(3).tolist(), ties.size) == ([1, 2], [3, 4, 5], 6)


def test_a_constant_freezes_only_the_elements_that_meet_it():
    ties = Ties()
    a = ties.new(3)
    ties.tie(a, torch.tensor([CONSTANT, 2, CONSTANT]), "cat")
    classes = ties.classes()
    assert [classes.why(int(i)) is not None for i in a] == [True, False, True]


def test_what_is_frozen_freezes_what_is_tied_to_it_and_the_first_reason_stays():
    ties = Ties()
    a, b, c = ties.new(2), ties.new(2), ties.new(2)
    ties.tie(a, b, "add")
    ties.freeze(b[:1], "first")
    ties.freeze(a, "second")
    classes = ties.classes()
    assert [classes.why(int(i)) for i in torch.cat([a, b, c])] == ["first", "second", "first", "second", None, None]


def test_constants_do_not_connect_what_meets_them():
    ties = Ties()
    a, b = ties.new(2), ties.new(2)
    ties.tie(torch.tensor([1, CONSTANT]), torch.tensor([CONSTANT, 3]), "cat")
    classes = ties.classes()
    assert classes.of[a[0]] != classes.of[b[0]]


def test_a_copy_goes_its_own_way():
    ties = Ties()
    a = ties.new(2)
    other = ties.copy()
    other.tie(a[:1], a[1:], "view")
    assert [kinds.of[a].tolist() for kinds in (ties.classes(), other.classes())] == [[1, 2], [1, 1]]


def test_a_sum_of_weights_is_lossy_unless_its_elements_make_channels():
    ties = Ties()
    rows, columns = ties.new(2), ties.new(2)
    ties.made(rows)
    ties.weighed(rows, rows)
    ties.weighed(columns, columns)
    classes = ties.classes()
    assert (classes.lossy[rows].tolist(), classes.lossy[columns].tolist()) == ([False, False], [True, True])
