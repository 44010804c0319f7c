"""keep_top against a stable numpy sort; masks as bits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sparse.core.masks import all_bits, clear, keep_best, keep_top, pack_bits, unpack_bits
from lightning_sparse.core.patterns import Unstructured

NAN, INF = math.nan, math.inf
LARGE = 300_000
STRIDE = LARGE // (1 << 15)  # of the sample that keep_top looks at


def everything(scores):
    return torch.ones(scores.shape, dtype=torch.bool)


def kept(scores, k, among=None, dtype=torch.float32):
    """Indices that keep_top keeps."""
    scores = torch.tensor(scores, dtype=dtype)
    among = everything(scores) if among is None else torch.tensor(among).bool()
    return keep_top(scores, k, among).nonzero().flatten().tolist()


def by_sorting(scores, among):
    """Allowed indices from best to worst, by one stable sort: NaN last, ties by index."""
    flat = scores.double().numpy().ravel()
    allowed = np.flatnonzero(among.numpy().ravel())
    return allowed[np.argsort(np.where(np.isnan(flat), INF, -flat)[allowed], kind="stable")]


def assert_as_sorted(scores, among, counts):
    order = by_sorting(scores, among)
    for k in counts:
        expected = np.zeros(scores.numel(), dtype=bool)
        expected[order[:k]] = True
        mask = keep_top(scores, k, among)
        assert mask.shape == scores.shape
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy().ravel(), expected, err_msg=f"k={k}")


def test_the_largest_are_kept():
    assert kept([0.1, 0.9, -5.0, 0.5], 2) == [1, 3]


def test_ties_go_to_the_lower_index():
    assert kept([1, 3, 3, 3, 0], 2) == [1, 2]
    assert kept([2, 2, 2, 2], 3) == [0, 1, 2]
    assert kept([0.0, -0.0, 0.0], 1) == [0]  # both zeros are the same number


def test_nan_ranks_below_every_number():
    assert kept([NAN, -3.0, NAN, -1e30], 2) == [1, 3]
    assert kept([NAN, INF, 1.0], 1) == [1]


def test_nan_is_kept_when_nothing_else_is_left():
    assert kept([NAN, 5.0, NAN, NAN], 2) == [0, 1]
    assert kept([NAN, NAN, NAN], 2) == [0, 1]


def test_minus_infinity_is_kept_when_nothing_else_is_left():
    assert kept([-INF, 5.0, -INF, -INF], 3) == [0, 1, 2]


def test_a_forbidden_entry_never_fills_in_for_an_allowed_one_at_minus_infinity():
    assert kept([9.0, -INF, 9.0, -INF, NAN, 1.0], 3, among=[0, 1, 0, 1, 1, 1]) == [1, 3, 5]


def test_nan_ties_with_minus_infinity():
    assert kept([NAN, -INF], 1) == [0]
    assert kept([-INF, NAN], 1) == [0]


def test_only_allowed_entries_are_kept():
    assert kept([9.0, 1.0, 8.0, 2.0], 1, among=[0, 1, 0, 1]) == [3]
    assert kept([9.0, 1.0, 8.0, 2.0], 2, among=[0, 1, 0, 1]) == [1, 3]


def test_none_and_all_are_possible():
    assert kept([1.0, 2.0, 3.0], 0) == []
    assert kept([1.0, NAN, 3.0], 3) == [0, 1, 2]
    assert kept([1.0, 2.0, 3.0], 2, among=[1, 0, 1]) == [0, 2]
    assert kept([1.0, 2.0], 0, among=[0, 0]) == []


def test_the_result_is_never_the_mask_it_was_given():
    among = torch.ones(3).bool()
    keep_top(torch.arange(3.0), 3, among)[0] = False
    assert among.all()


def test_scores_are_not_changed():
    scores = torch.tensor([1.0, NAN, INF, -INF])
    keep_top(scores, 2, torch.tensor([1, 1, 0, 1]).bool())
    assert scores[0] == 1
    assert scores[1].isnan()
    assert scores[2:].tolist() == [INF, -INF]


@pytest.mark.parametrize("k", [-1, 3])
def test_more_than_is_allowed_is_refused_with_both_numbers(k):
    with pytest.raises(ValueError, match=f"cannot keep {k} of 2 allowed"):
        kept([1.0, 2.0, 3.0], k, among=[1, 0, 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_every_real_dtype_is_ranked(dtype):
    assert kept([3, 7, 7, 0, 7, 1], 2, dtype=dtype) == [1, 2]


def test_float64_is_ranked_at_its_own_precision():
    assert kept([1.0, 1.0 + 1e-12, 1.0], 1, dtype=torch.float64) == [1]


def test_large_integers_are_ranked_exactly():
    assert kept([2**24, 2**24 + 1], 1, dtype=torch.int64) == [1]


def test_shape_and_strides_do_not_matter():
    scores = torch.tensor([[1.0, 6.0, 3.0], [4.0, 5.0, 2.0]])
    turned = scores.t()  # not contiguous: rows are (1, 4), (6, 5), (3, 2)
    assert keep_top(turned, 3, everything(turned)).int().tolist() == [[0, 1], [1, 1], [0, 0]]
    assert keep_top(torch.tensor(4.0), 1, torch.tensor(True)).item() is True


@given(
    st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-40, INF, -INF, NAN]), min_size=1, max_size=24),
    st.data(),
)
@settings(deadline=None, max_examples=80)
def test_small_tensors_are_kept_as_sorting_keeps_them(values, data):
    scores = torch.tensor(values)
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    assert_as_sorted(scores, among, [data.draw(st.integers(0, int(among.sum())))])


def shapes_of_trouble():
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(LARGE, generator=generator)
    index = torch.arange(LARGE)
    sampled = index % STRIDE == 0
    return {
        "few ties": normal.view(300, 1000),
        "many ties": torch.randint(0, 6, (LARGE,), generator=generator).float(),
        "all equal": torch.full((LARGE,), 0.25),
        "rising": index.float(),
        "falling": -index.float(),
        "the sample sees only the large": torch.where(sampled, 100.0 + normal, normal),
        "the sample sees only the small": torch.where(sampled, normal - 100.0, normal),
        "the sample sees only NaN": torch.where(sampled, NAN, normal),
        "the sample sees only infinity": torch.where(sampled, INF, normal.round()),
        "almost all zero": torch.where(index % 1000 == 7, normal, 0.0),
    }


@pytest.mark.parametrize("case", shapes_of_trouble().keys())
def test_large_tensors_are_kept_as_sorting_keeps_them(case):
    scores = shapes_of_trouble()[case]
    assert_as_sorted(scores, everything(scores), [1, 40, 30_000, 150_000, LARGE - 33_333])


@pytest.mark.parametrize("case", ["few ties", "many ties", "rising", "all equal"])
def test_all_but_one_are_kept_as_sorting_keeps_them(case):
    scores = shapes_of_trouble()[case]
    assert_as_sorted(scores, everything(scores), [LARGE - 1])


@pytest.mark.parametrize("case", ["few ties", "many ties", "the sample sees only the small"])
def test_large_tensors_with_forbidden_entries_are_kept_as_sorting_keeps_them(case):
    scores = shapes_of_trouble()[case]
    among = (torch.arange(LARGE) % 10 == 3).view(scores.shape)
    assert_as_sorted(scores, among, [1, 3_000, 29_999])


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-INF, -1.0, 0.0, INF, NAN]), min_size=n, max_size=n), min_size=1, max_size=5
        )
    ),
    st.data(),
)
@settings(deadline=None, max_examples=100)
def test_the_best_of_each_row_are_those_that_sorting_finds(rows, data):
    scores, columns = torch.tensor(rows), len(rows[0])
    among = [data.draw(st.lists(st.booleans(), min_size=columns, max_size=columns)) for _ in rows]
    need = [data.draw(st.integers(0, sum(allowed))) for allowed in among]
    found = keep_best(scores, torch.tensor(need), torch.tensor(among))
    for row, allowed, n, mask in zip(rows, among, need, found.tolist(), strict=True):
        worst_last = sorted(range(columns), key=lambda i: (INF if math.isnan(row[i]) else -row[i], i))
        best_first = [i for i in worst_last if allowed[i]]
        assert [i for i, lives in enumerate(mask) if lives] == sorted(best_first[:n])


def test_a_row_that_has_too_few_is_named():
    with pytest.raises(ValueError, match="cannot keep 2 of 1 allowed entries in group 1"):
        keep_best(torch.zeros(2, 2), torch.tensor([1, 2]), torch.tensor([[1, 1], [0, 1]]).bool())


def test_a_free_pattern_is_keep_top():
    scores, among = torch.tensor([4.0, 9.0, 9.0]), torch.tensor([1, 0, 1]).bool()
    assert Unstructured().keep(scores, 1, among).tolist() == [False, False, True]
    assert Unstructured().fixed_density() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_cleared_is_exactly_zero_and_the_rest_keeps_every_bit(dtype):
    x = torch.tensor([[1.5, NAN, -INF], [-0.0, INF, NAN]], dtype=dtype).t()  # not contiguous
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]]).bool().t()
    y = x.clone()
    clear([x, y], [all_bits(mask, dtype), all_bits(~mask, dtype)])
    assert x.t().flatten().tolist() == [1.5, 0.0, 0.0, -0.0, INF, 0.0]
    assert math.copysign(1, x[0, 1]) == -1  # minus zero is kept, too
    assert y[0].tolist() == [0.0, 0.0]
    assert y[1, 0].isnan()


def test_eight_weights_share_a_byte_lowest_bit_first():
    # 1 + 2 + 128 = 131; the ninth weight starts a second byte
    assert pack_bits(torch.tensor([1, 1, 0, 0, 0, 0, 0, 1, 1, 0]).bool()).tolist() == [131, 1]


@given(st.lists(st.booleans(), max_size=70))
@settings(deadline=None, max_examples=60)
def test_bits_come_back_as_they_went(bits):
    mask = torch.tensor(bits, dtype=torch.bool)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(len(bits) / 8)
    assert unpack_bits(packed, mask.shape).tolist() == bits


def test_bits_come_back_in_their_shape():
    mask = torch.rand(3, 5, 7) < 0.4
    assert torch.equal(unpack_bits(pack_bits(mask), [3, 5, 7]), mask)
    turned = mask.permute(2, 0, 1)
    assert torch.equal(unpack_bits(pack_bits(turned), turned.shape), turned)


@pytest.mark.parametrize("given_bytes", [1, 3])
def test_a_wrong_number_of_bytes_is_refused_with_both_numbers(given_bytes):
    with pytest.raises(ValueError, match=rf"shape \[3, 3\] needs 2 bytes, got {given_bytes}"):
        unpack_bits(torch.zeros(given_bytes, dtype=torch.uint8), [3, 3])
