"""Which channels stay, worked out by hand: shares, ties, thresholds, floors, multiples."""

import math

import pytest
import torch
from channels.handmade import chosen

from lightning_sparse.channels.choose import Axis, axis, top
from lightning_sparse.channels.options import Choice, device_step


def test_under_global_scope_the_best_channels_of_all_stay():
    assert chosen([[5.0, 1.0, 3.0], [2.0, 4.0]], keep=0.6, scope="global") == [[0, 2], [1]]
    assert chosen([[5.0, 6.0, 7.0], [2.0, 4.0]], keep=0.6, scope="global") == [[1, 2], [1]]  # a floor of one


def test_under_layer_scope_every_axis_keeps_its_share():
    assert chosen([[5.0, 6.0, 7.0, 8.0], [2.0, 4.0]], keep=0.5, scope="layer") == [[2, 3], [1]]


def test_where_shares_are_no_whole_numbers_every_layer_keeps_the_nearest_and_a_global_total_is_exact():
    assert [len(kept) for kept in chosen([[1.0] * 5] * 3, keep=0.5, scope="layer")] == [3, 3, 3]  # 2.5: the larger
    assert [len(kept) for kept in chosen([[1.0] * 5] * 3, keep=0.45, scope="layer")] == [2, 2, 2]  # 2.25
    assert [len(kept) for kept in chosen([[1.0] * 5] * 3, keep=0.5, scope="global")] == [5, 2, 1]  # 7.5, that is 8


def test_ties_go_to_the_lower_index():
    assert chosen([[1.0, 2.0, 2.0, 2.0]], keep=0.5) == [[1, 2]]
    assert chosen([[1.0] * 4, [1.0] * 4], keep=0.5, scope="global") == [[0, 1, 2], [0]]
    assert top(torch.tensor([0.0] * 100), 3).tolist() == [0, 1, 2]


def test_with_a_threshold_what_is_strictly_above_it_stays_whatever_keep_says():
    assert chosen([[0.1, 0.2, 0.3], [0.2, 0.1, 0.1]], threshold=0.1, keep=0.01) == [[1, 2], [0]]
    assert chosen([[0.1, 0.2], [0.0, 0.1]], threshold=0.5) == [[1], [1]]  # the floor, by score
    assert chosen([[0.1, 0.2], [0.0, 0.1]], threshold=-1.0) == [[0, 1], [0, 1]]
    assert chosen([[float(i) for i in range(16)]], threshold=9.5, round_to=4) == [list(range(8, 16))]


def test_channels_with_infinite_scores_stay():
    values = [[0.0, math.inf, 0.0, math.inf], [9.0] * 4]
    assert chosen(values, keep=0.5, scope="layer") == [[1, 3], [0, 1]]
    assert chosen(values, keep=0.25 + 0.125, scope="global") == [[1, 3], [0]]
    values = [[math.inf] * 3 + [0.0], [1.0, 2.0, 3.0, 4.0]]
    assert chosen(values, keep=0.5, scope="layer") == [[0, 1, 2], [2, 3]]  # more than its share
    with pytest.raises(ValueError, match=r"at least 0\.5 stays"):
        chosen(values, keep=0.25, scope="layer")


def test_a_dead_axis_goes_down_to_its_floor():
    values = [[0.0] * 16, [float(i + 1) for i in range(16)]]
    assert [len(kept) for kept in chosen(values, keep=17 / 32, scope="global")] == [1, 16]
    assert [len(kept) for kept in chosen(values, keep=0.625, scope="global", round_to=4)] == [4, 16]


def test_a_cap_leaves_every_axis_its_share():
    values = [[0.0] * 10, [float(i + 1) for i in range(10)]]
    assert [len(kept) for kept in chosen(values, keep=0.6, scope="global", cap=0.7)] == [3, 9]


@pytest.mark.parametrize(
    ("sizes", "keep", "expected"),
    [
        ([20], 0.5, [8]),  # 8 or 16: 10 is nearer to 8
        ([20], 0.9, [20]),  # 16 or all 20: 18 is as near to both, then the larger
        ([20], 0.95, [20]),
        ([20, 20, 20], 0.5, [8, 8, 8]),
        ([16, 128], 0.25, [8, 32]),  # 4 becomes 8, and the other keeps its share
        ([64, 32, 16], 0.5, [32, 16, 8]),
        ([12, 20], 0.5, [8, 8]),
    ],
)
def test_under_layer_scope_multiples_are_the_nearest_to_the_share_of_each_axis(sizes, keep, expected):
    values = [[float(i) for i in range(size)] for size in sizes]
    assert [len(kept) for kept in chosen(values, keep=keep, scope="layer", round_to=8)] == expected


def test_under_global_scope_what_rounding_takes_from_one_axis_another_gets():
    values = [[float(i) for i in range(20)]] * 3  # each would keep 10; 32 is nearer to 30 than 24
    assert sum(len(kept) for kept in chosen(values, keep=0.5, scope="global", round_to=8)) == 32


def test_without_a_multiple_the_step_of_the_device_is_taken_but_at_most_an_eighth_of_the_axis():
    cases = {(16, 512): 16, (16, 64): 8, (16, 20): 2, (16, 7): 1, (8, 512): 8, (16, 100): 8, (8, 1): 1}
    for (step, size), unit in cases.items():
        assert axis(torch.zeros(size), Choice(round_to=None), step).unit == unit


def test_the_step_of_a_device_is_that_of_its_vectors(monkeypatch):
    for name, step in (("AVX512", 16), ("AVX2", 8), ("DEFAULT", 8)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        assert device_step(torch.device("cpu")) == step
        assert device_step(torch.device("cuda")) == 8


@pytest.mark.parametrize("allowed", [Axis(20, 8, 8), Axis(7, 1, 1), Axis(9, 4, 4), Axis(5, 5, 8)])
def test_the_nearest_count_is_the_nearest(allowed):
    counts = sorted({allowed.least, *range(allowed.least, allowed.size + 1, allowed.unit), allowed.size})
    for count in range(allowed.size + 1):
        expected = min(counts, key=lambda n: (abs(n - count), -n))
        assert allowed.nearest(count) == expected


def test_wrong_arguments_are_named_all_at_once():
    wrong = {"keep": 0, "scope": "all", "target": "size", "round_to": 0, "min_channels": 0, "cap": 1.0}
    assert len(Choice(threshold=None, **wrong).problems()) == 6
    with pytest.raises(ValueError, match="6 problems"):
        chosen([[1.0]], **wrong)
    assert Choice(keep=7, scope="layer", threshold=0.1).problems() == []  # keep is not asked
    assert "threshold" in Choice(keep=1, scope="layer", threshold="x").problems()[0]


def test_scores_that_are_nan_are_refused_by_name():
    with pytest.raises(ValueError, match="NaN in b"):
        chosen([[1.0], [1.0, math.nan]])
