"""Patterns by hand: what they keep, which counts and shapes they take, which dimension is which."""

import pytest
import torch
from torch import Size, nn

from lightning_sparse import NM, Block, Channel, FanIn, Pattern, RigL, Sparsifier, Static, Unstructured
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import outputs_first, seen
from lightning_sparse.core.select import Target


def kept(pattern, scores, k, among=None):
    scores = torch.tensor(scores, dtype=torch.float32)
    everything = torch.ones_like(scores, dtype=torch.bool) if among is None else torch.tensor(among).bool()
    return pattern.keep(scores, k, everything).int().tolist()


def test_two_of_four_on_the_way_down_keep_the_best_anywhere():
    rows = [[9, 8, 7, 6], [1, 2, 3, 4]]
    assert kept(NM(2, 4), rows, 4) == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert kept(NM(2, 4), rows, 5) == [[1, 1, 1, 0], [0, 0, 1, 1]]
    assert kept(NM(2, 4), rows, 7) == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_rest_of_the_fan_in_goes_where_the_next_weight_is_best():
    rows = [[9, 2, 1], [8, 5, 4], [7, 6, 0]]
    assert kept(FanIn(), rows, 3) == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert kept(FanIn(), rows, 5) == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert kept(FanIn(), rows, 7) == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]


def test_a_row_that_has_one_more_already_gets_no_other():
    # four weights on three rows: one each, and one more, which the first row has; its next would be the best of all
    live = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    scores = torch.tensor([[0.0, 0, 9], [1, 2, 3], [5, 4, 6]])
    assert FanIn().fill(live, scores, 4, ~live).int().tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert FanIn().fill(live, scores, 5, ~live).int().tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 1]]


def test_a_block_is_worth_its_sum_not_its_largest_weight():
    assert kept(Block(2, 2), [[9, 0, 3, 3], [0, 0, 3, 3]], 4) == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_unit_of_which_one_weight_is_forbidden_is_not_kept():
    assert kept(Block(1, 2), [[9, 9, 1, 1]], 2, [[1, 0, 1, 1]]) == [[0, 0, 1, 1]]
    assert kept(Channel(), [[9, 9], [1, 1]], 2, [[0, 1], [1, 1]]) == [[0, 0], [1, 1]]


def test_a_unit_is_summed_in_single_precision_at_least():
    # in float16 2048 + 1 is 2048: a tie
    scores = torch.tensor([[2048.0, 0.0, 2048.0, 1.0]], dtype=torch.float16)
    assert Block(1, 2).keep(scores, 2, torch.ones(1, 4).bool()).int().tolist() == [[0, 0, 1, 1]]


def test_groups_that_are_short_are_completed_and_the_rest_grows_anywhere():
    # row 0 lost both of its weights, row 1 kept three: 2 + 3, and one more for the best of what is left
    live = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]]).bool()
    scores = torch.tensor([[1.0, 4, 3, 2], [0, 0, 0, 2.5]])
    assert NM(2, 4).fill(live, scores, 6, ~live).int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]


def test_no_group_drops_more_than_it_can_grow_again():
    # 3:4 has one spare weight in each group: of the three smallest, 1, 2 and 3, the first group gives one only
    live = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 0]]).bool()
    scores = torch.tensor([[1.0, 2, 3, 0, 7, 8, 9, 0]])
    assert NM(3, 4).shrink(scores, 4, live, ~live).int().tolist() == [[0, 1, 1, 0, 0, 1, 1, 0]]
    assert NM(3, 4).shrink(scores, 1, live, ~live).int().tolist() == [[0, 1, 1, 0, 0, 1, 1, 0]]  # more cannot go
    assert NM(3, 4).shrink(scores, 4, live).int().tolist() == [[0, 0, 1, 0, 1, 1, 1, 0]]


def test_units_are_dropped_whole_and_never_more_than_asked():
    live = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool()
    scores = torch.tensor([[1.0, 1, 2, 2, 3, 3, 0, 0]])
    for k, expected in ((6, 6), (5, 6), (4, 4), (3, 4)):
        assert int(Block(1, 2).shrink(scores, k, live, ~live).sum()) == expected


@pytest.mark.parametrize(
    ("pattern", "k", "text"),
    [
        (NM(2, 4), 3, r"NM\(n=2, m=4\) cannot keep 3 of 8 weights: its groups need 4"),
        (Block(1, 2), 3, r"Block\(rows=1, columns=2\) keeps whole units of 2 weights here, 3 are none"),
        (Channel(), 6, r"Channel\(\) keeps whole units of 4 weights here, 6 are none"),
    ],
)
def test_a_count_that_cannot_be_is_refused_with_its_reason(pattern, k, text):
    with pytest.raises(ValueError, match=text):
        kept(pattern, [[1, 2, 3, 4], [5, 6, 7, 8]], k)


def test_a_row_that_is_longer_than_all_may_be_is_refused():
    with pytest.raises(ValueError, match=r"FanIn\(\) cannot keep 4 of 8 weights: a row has 4 already"):
        FanIn().fill(torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool(), torch.zeros(2, 4), 4, torch.ones(2, 4).bool())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: NM(2, 2), "1 <= n < m, got n=2, m=2"),
        (lambda: NM(0, 4), "1 <= n < m, got n=0, m=4"),
        (lambda: NM(2.0, 4), r"1 <= n < m, got n=2\.0, m=4"),
        (lambda: Block(0, 2.5), r"rows must be an int from 1, got 0\n.*columns must be an int from 1, got 2\.5"),
    ],
)
def test_numbers_that_make_no_pattern_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("pattern", "shape", "unit", "least", "density"),
    [
        (Unstructured(), (6, 8), 1, 1, None),
        (NM(2, 4), (6, 8), 1, 24, 0.5),
        (NM(1, 4), (6, 8, 3, 3), 1, 108, 0.25),
        (FanIn(), (6, 8, 3, 3), 6, 6, None),
        (Block(2, 4), (6, 8, 3, 3), 8, 8, None),
        (Channel(), (6, 8, 3, 3), 72, 72, None),
    ],
)
def test_units_and_least_counts(pattern, shape, unit, least, density):
    assert (pattern.unit(Size(shape)), pattern.least(Size(shape)), pattern.fixed_density()) == (unit, least, density)


def test_counts_are_rounded_to_what_can_be():
    shape = Size([4, 6])
    assert [NM(1, 2).whole(k, shape) for k in (0, 11.6, 13.4, 99)] == [12, 12, 13, 24]
    assert [FanIn().whole(k, shape) for k in (0, 5, 7, 23, 99)] == [4, 4, 8, 24, 24]
    assert [Block(2, 3).whole(k, shape) for k in (0, 8, 10, 99)] == [6, 6, 12, 24]
    assert [Channel().whole(k, shape) for k in (2.9, 16)] == [6, 18]


@pytest.mark.parametrize(
    ("pattern", "shape", "text"),
    [
        (NM(2, 4), (8, 6), "6 inputs are no multiple of 4"),
        (NM(2, 4), (6, 8), ""),
        (Block(2, 4), (5, 8), "5 x 8 is not made of whole 2 x 4 blocks"),
        (Block(2, 4), (6, 9, 3, 3), "6 x 9 is not made of whole 2 x 4 blocks"),
        (Block(2, 4), (6, 8, 3, 3), ""),
        (FanIn(), (7, 5), ""),
        (Channel(), (1, 3), ""),
    ],
)
def test_shapes_that_cannot_have_a_pattern_say_why(pattern, shape, text):
    assert pattern.misfit(Size(shape)) == text


def test_any_mask_is_unstructured():
    assert Unstructured().holds(torch.tensor([True, False]))


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4), FanIn(), Block(4, 4), Channel()])
def test_a_free_choice_of_everything_is_everything(pattern):
    assert bool(pattern.keep(torch.randn(8, 8), 64, torch.ones(8, 8).bool()).all())


@pytest.mark.parametrize("pattern", [NM(2, 4), FanIn(), Block(2, 4), Channel()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_real_dtype_is_ranked_as_single_precision_is(pattern, dtype):
    scores = torch.randperm(64).view(8, 8)
    everything = torch.ones(8, 8).bool()
    assert torch.equal(pattern.keep(scores.to(dtype), 32, everything), pattern.keep(scores.float(), 32, everything))


def test_strides_do_not_matter():
    scores, everything = torch.randn(8, 4, 3).transpose(0, 1), torch.ones(4, 8, 3).bool()
    for pattern in (NM(2, 4), FanIn(), Block(2, 4), Channel()):
        expected = pattern.keep(scores.contiguous(), 48, everything)
        assert torch.equal(pattern.keep(scores, 48, everything), expected)


class LeftHalf(Pattern):
    """A user's own, by its one method: nothing lives in the right half of the inputs."""

    def fill(self, kept, scores, k, among):
        left = torch.arange(scores.shape[1]) < scores.shape[1] // 2
        return kept | keep_top(scores, k - int(kept.sum()), among & ~kept & left)


def test_a_pattern_of_ones_own_needs_one_method():
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Sparsifier(model, RigL(every=1, stop=9), 0.25, pattern=LeftHalf(), optimizers=[optimizer])
    seen_masks = {engine.masks["weight"].numpy().tobytes()}
    for _ in range(5):
        model(torch.randn(6, 8)).square().sum().backward()
        optimizer.step()
        mask = engine.masks["weight"]
        seen_masks.add(mask.numpy().tobytes())
        assert (int(mask.sum()), int(mask[:, 4:].sum())) == (8, 0)
    assert len(seen_masks) >= 3


# ---- Which dimension is which


def param(module, pattern, live):
    name = "weight" if hasattr(module, "weight") else "weight_ih_l0"
    return SparseParam(Target(name, module, name), density=0.5, target=live, pattern=pattern)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 4), (4, 8)),
        (nn.Conv2d(8, 4, 3, groups=2), (4, 4, 3, 3)),
        (nn.ConvTranspose1d(8, 6, 3), (6, 8, 3)),
        (nn.ConvTranspose2d(8, 6, (3, 2), groups=2), (6, 4, 3, 2)),
        (nn.LSTM(8, 5), (20, 8)),
    ],
)
def test_outputs_come_first(module, shape):
    p = param(module, Unstructured(), 1)
    assert seen(p.place) == shape
    there = outputs_first(p.weight, module)
    assert there.shape == shape
    assert torch.equal(outputs_first(there, module), p.weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_dead_channel_of_a_transposed_convolution_gives_nothing(groups):
    module = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    p = param(module, Channel(), module.weight.numel() // 2)
    mask = p.keep(p.weight.abs(), p.target, p.mask)
    with torch.no_grad():
        worth = module(torch.ones(1, 4, 5, 5)).abs().sum((0, 2, 3))  # before: every channel gives something
        module.weight.mul_(mask)
        after = module(torch.randn(1, 4, 5, 5)).abs().sum((0, 2, 3))
    assert (worth > 0).all()
    assert int((after > 0).sum()) == 3


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pattern", [NM(1, 2), FanIn(), Block(2, 2)])
def test_a_transposed_convolution_has_the_pattern_of_the_convolution_it_turns_around(groups, pattern):
    module = nn.ConvTranspose1d(4, 8, 3, groups=groups)
    p = param(module, pattern, module.weight.numel() // 2)
    scores = torch.randn(module.weight.shape)
    everything = torch.ones_like(p.mask)
    mask = p.fill(p.shrink(scores, p.target // 2, p.keep(scores, p.target, everything)), scores, p.target, everything)
    # output o of group g reads inputs 4 / groups * g and on
    into, out = 4 // groups, 8 // groups
    rows = [mask[into * (o // out) : into * (o // out + 1), o % out] for o in range(8)]  # (inputs, kernel) each
    turned = torch.stack(rows)
    assert pattern.holds(turned)
    assert int(turned.sum()) == p.target
    assert p.holds(mask)
    assert not p.holds(mask.roll(1, 0).logical_and(torch.rand(mask.shape) < 0.5))
    best = torch.stack([scores[into * (o // out) : into * (o // out + 1), o % out] for o in range(8)])
    assert torch.equal(turned, pattern.keep(best, p.target, torch.ones_like(turned)))


def test_free_weights_of_a_transposed_convolution_tie_by_their_index_as_stored():
    p = param(nn.ConvTranspose1d(2, 2, 1), Unstructured(), 2)
    assert p.keep(torch.zeros(2, 2, 1), 2, p.mask).flatten().tolist() == [True, True, False, False]
    turned = param(nn.ConvTranspose1d(2, 2, 1), Channel(), 2)
    assert turned.keep(torch.zeros(2, 2, 1), 2, turned.mask).flatten().tolist() == [True, False, True, False]


def test_gates_of_a_recurrent_layer_and_projections_of_attention_are_outputs():
    for module in (nn.GRU(8, 4), nn.MultiheadAttention(8, 2)):
        engine = Sparsifier(module, Static(), 0.25, pattern=FanIn(), allocation="uniform")
        for mask in engine.masks.values():
            assert (mask.sum(1) == mask.shape[1] // 4).all()
