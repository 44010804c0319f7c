"""Which channels stay, for any scores: exact totals, floors, multiples, ties, more with a larger share."""

import math
from itertools import product

import pytest
from channels.handmade import chosen
from hypothesis import given, settings
from hypothesis import strategies as st

scores_of_axes = st.lists(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), min_size=1, max_size=5
)  # few values, so that there are ties
scopes = st.sampled_from(["global", "layer"])
shares = st.floats(0.02, 1.0)


def rounded(x):
    return math.floor(x + 0.5)


def least_of(size, min_channels, unit=1, cap=None):
    """The fewest channels allowed."""
    floor = max(1, min_channels, math.ceil(size * (1 - cap) - 1e-9) if cap is not None else 0)
    return min(size, math.ceil(floor / unit) * unit)


@settings(max_examples=40, deadline=None)
@given(values=scores_of_axes, keep=shares, scope=scopes, floor=st.integers(1, 3))
def test_the_total_is_exact_or_refused(values, keep, scope, floor):
    total, least = sum(map(len, values)), sum(least_of(len(v), floor) for v in values)
    want = rounded(keep * total)
    if want < least:
        with pytest.raises(ValueError, match="cannot be met"):
            chosen(values, keep=keep, scope=scope, min_channels=floor)
    else:
        kept = chosen(values, keep=keep, scope=scope, min_channels=floor)
        assert scope == "layer" or sum(map(len, kept)) == want
        assert all(len(k) >= least_of(len(v), floor) for k, v in zip(kept, values, strict=True))


@settings(max_examples=50, deadline=None)
@given(values=scores_of_axes, keep=shares, scope=scopes)
def test_no_channel_that_goes_scores_above_one_of_its_axis_that_stays(values, keep, scope):
    try:
        kept = chosen(values, keep=keep, scope=scope)
    except ValueError:
        return
    for stays, own in zip(kept, values, strict=True):
        goes = set(range(len(own))) - set(stays)
        assert stays == sorted(stays)
        # exchanging any pair would lower the score, or raise the index at an equal score
        assert all((own[i], -i) > (own[j], -j) for i, j in product(stays, goes))


@settings(max_examples=40, deadline=None)
@given(values=scores_of_axes, keep=shares)
def test_global_scope_is_one_ranking_once_every_axis_has_its_best(values, keep):
    """A slow restatement: the best of each axis first, then the best of all the others."""
    want = rounded(keep * sum(map(len, values)))
    every = [(-score, a, i) for a, own in enumerate(values) for i, score in enumerate(own)]
    firsts = [min((-score, a, i) for i, score in enumerate(own)) for a, own in enumerate(values)]
    if want < len(firsts):
        return
    stays = firsts + sorted(set(every) - set(firsts))[: want - len(firsts)]
    expected = [sorted(i for _, a, i in stays if a == b) for b in range(len(values))]
    assert chosen(values, keep=keep, scope="global") == expected


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), keep=shares)
def test_under_layer_scope_every_axis_keeps_the_nearest_count_whatever_the_others_do(sizes, keep):
    if rounded(keep * sum(sizes)) < len(sizes):
        return
    kept = [len(k) for k in chosen([[0.0] * size for size in sizes], keep=keep, scope="layer")]
    assert kept == [max(1, rounded(keep * size)) for size in sizes]


@settings(max_examples=50, deadline=None)
@given(values=scores_of_axes, first=shares, second=shares, scope=scopes, unit=st.integers(1, 4))
def test_what_stays_at_a_smaller_share_stays_at_a_larger_one(values, first, second, scope, unit):
    for target in ("channels", "params"):
        ask = {"scope": scope, "round_to": unit, "target": target}
        try:
            small, large = (chosen(values, keep=keep, **ask) for keep in sorted([first, second]))
        except ValueError:
            return
        assert all(set(s) <= set(m) for s, m in zip(small, large, strict=True))


@settings(max_examples=50, deadline=None)
@given(values=scores_of_axes, keep=shares, scope=scopes, unit=st.integers(2, 5), floor=st.integers(1, 4))
def test_counts_are_multiples_or_whole_axes_above_the_floor(values, keep, scope, unit, floor):
    try:
        kept = chosen(values, keep=keep, scope=scope, round_to=unit, min_channels=floor)
    except ValueError:
        return
    for stays, own in zip(kept, values, strict=True):
        assert len(stays) % unit == 0 or len(stays) == len(own)
        assert len(stays) >= min(floor, len(own))
    if scope == "layer":
        return
    # no single axis could take one step more or less and bring the total nearer, were its floor not in the way, by
    # more than the step of the smallest; the total is off by less than the largest step
    off = sum(map(len, kept)) - keep * sum(map(len, values))
    assert off <= unit + 0.5 or all(len(k) == least_of(len(v), floor, unit) for k, v in zip(kept, values, strict=True))
    assert off >= -unit - 0.5


@settings(max_examples=50, deadline=None)
@given(values=scores_of_axes, scope=scopes, target=st.sampled_from(["channels", "flops", "params"]))
def test_keeping_everything_keeps_everything(values, scope, target):
    assert chosen(values, keep=1.0, scope=scope, target=target) == [list(range(len(own))) for own in values]


@settings(max_examples=40, deadline=None)
@given(values=scores_of_axes, scope=scopes, target=st.sampled_from(["channels", "flops", "params"]))
def test_a_target_below_the_floors_is_refused_with_the_least_that_can_be_met(values, scope, target):
    try:
        chosen(values, keep=1e-6, scope=scope, target=target)
    except ValueError as error:
        share = float(str(error).split("ask for keep >= ")[1].split(",")[0])
        kept = chosen(values, keep=share, scope=scope, target=target)
        if scope == "global" or target != "channels":  # else each axis keeps the count nearest to its own share
            assert all(len(k) == 1 for k in kept)
        if target == "channels":
            assert share == pytest.approx(len(values) / sum(map(len, values)), abs=1e-4)
    else:
        assert all(len(own) == 1 for own in values)
