"""Rules, worked by hand: which elements of two weights an operation ties, and what it freezes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sparse.channels.trace import Tracer


class Weights(nn.Module):
    """Bare parameters, so that labels are theirs."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))


def watch(run, **shapes):
    """(classes, {name: ids by dimension}, tracer, result) of a run on bare parameters."""
    model = Weights(**shapes)
    tracer = Tracer(model)
    known = {name: tracer.flows[0].of(p) for name, p in model.named_parameters()}
    with tracer, torch.no_grad():
        result = run(model)
    labels = tracer.flows[0].of(result) if isinstance(result, torch.Tensor) else None
    return tracer.classes()["last"], known, labels, tracer


def together(classes, a, b):
    return bool((classes.of[a] == classes.of[b]).all())


def frozen(classes, ids):
    return [classes.why(int(i)) is not None for i in ids]


def test_adding_ties_place_by_place():
    classes, w, labels, _ = watch(lambda m: m.a + m.b, a=(2, 3), b=(3,))
    assert together(classes, w["a"][1], w["b"][0])
    assert not any(frozen(classes, w["a"][0]))
    assert [label.tolist() for label in labels] == [[1, 2], [3, 4, 5]]


def test_what_meets_a_constant_of_its_size_is_frozen_and_a_size_of_one_is_not_met():
    classes, w, _, _ = watch(lambda m: m.a * torch.ones(3), a=(2, 3))
    assert (frozen(classes, w["a"][0]), frozen(classes, w["a"][1])) == ([False] * 2, [True] * 3)


def test_a_matrix_product_ties_what_is_summed_and_makes_the_others():
    classes, w, labels, _ = watch(lambda m: m.a @ m.b, a=(2, 3), b=(3, 4))
    assert together(classes, w["a"][1], w["b"][0])
    assert [label.tolist() for label in labels] == [w["a"][0].tolist(), w["b"][1].tolist()]
    assert classes.read[classes.of[w["a"][1]]].all()


def test_flattening_repeats_a_channel_for_each_pixel():
    _, w, labels, _ = watch(lambda m: (m.a[:, None] * torch.ones(1, 2)).flatten(), a=(3,))
    one, two, three = w["a"][0].tolist()
    assert labels[0].tolist() == [one, one, two, two, three, three]


def test_a_split_dimension_is_thinned_along_its_last_part():
    classes, w, labels, _ = watch(lambda m: m.a.view(2, 3), a=(6,))
    assert together(classes, w["a"][0][:3], w["a"][0][3:])
    assert (labels[0], labels[1].tolist()) == (None, w["a"][0][:3].tolist())


def test_under_the_other_policy_it_is_thinned_along_its_first_part():
    model = Weights(a=(6,))
    tracer = Tracer(model)
    ids = tracer.flows[0].of(model.a)[0]
    with tracer:
        model.a.view(2, 3)
    of = tracer.classes()["first"].of[ids]
    assert (of[:3] == of[0]).all()
    assert (of[3:] == of[3]).all()
    assert of[0] != of[3]


def test_splitting_back_what_was_merged_is_no_choice():
    model = Weights(a=(3,))
    tracer = Tracer(model)
    with tracer:
        (model.a[:, None] * torch.ones(1, 2)).flatten().view(3, 2)
    assert list(tracer.classes()) == ["last"]


def test_equal_parts_lose_the_same_channels_and_unequal_ones_none():
    classes, w, _, _ = watch(lambda m: m.a.chunk(2)[0], a=(6,))
    assert together(classes, w["a"][0][:3], w["a"][0][3:])
    classes, w, _, _ = watch(lambda m: m.a.split([2, 4])[0], a=(6,))
    assert all(frozen(classes, w["a"][0]))


@pytest.mark.parametrize(
    "run",
    [
        lambda m: m.a[:3],
        lambda m: m.a[3:4],
        lambda m: m.a[::2],
        lambda m: m.a[3],
        lambda m: m.a[torch.tensor([0, 1])],
        lambda m: m.a.index_select(0, torch.tensor([0])),
        lambda m: m.a.flip(0),
        lambda m: m.a.roll(1, 0),
        lambda m: m.a.cumsum(0),
        lambda m: m.a.sort()[0],
        lambda m: m.a.argmax(),
        lambda m: m.a.topk(2)[0],
        lambda m: m.a.unbind()[0],
        lambda m: m.a.unfold(0, 2, 1),
        lambda m: m.a.gather(0, torch.tensor([1])),
        lambda m: torch.outer(m.a, torch.ones(4)).unsqueeze(0).tril(),
        lambda m: torch.fft.fft(m.a),
        lambda m: torch.histc(m.a),
    ],
)
def test_what_depends_on_numbers_or_order_or_is_unknown_freezes(run):
    classes, w, _, _ = watch(run, a=(8,))
    assert all(frozen(classes, w["a"][0]))


def test_an_unknown_operation_is_named():
    _, _, _, tracer = watch(lambda m: torch.fft.fft(m.a), a=(8,))
    assert list(tracer.unknown) == ["aten._fft_r2c"]


def test_cat_puts_channels_and_constants_side_by_side():
    _, w, labels, _ = watch(lambda m: torch.cat([m.a, torch.ones(2), m.b]), a=(2,), b=(3,))
    assert labels[0].tolist() == [*w["a"][0].tolist(), 0, 0, *w["b"][0].tolist()]


def test_convolutions_tie_by_group():
    x = torch.rand(1, 1, 4, 4)

    def run(m):
        return F.conv2d(F.conv2d(x, m.a), m.b, groups=2)

    classes, w, labels, _ = watch(run, a=(4, 1, 1, 1), b=(6, 2, 3, 3))
    a, b = w["a"][0], w["b"][0]
    assert together(classes, a[:2], a[2:])
    assert together(classes, a[:2], w["b"][1])
    assert together(classes, b[:3], b[3:])
    assert labels[1].tolist() == b.tolist()
    assert all(frozen(classes, w["b"][2]))


def test_a_depthwise_convolution_follows_its_input():
    x = torch.rand(1, 1, 4, 4)
    run = lambda m: F.conv2d(F.conv2d(x, m.a), m.b, groups=3)  # noqa: E731
    classes, w, _, _ = watch(run, a=(3, 1, 1, 1), b=(6, 1, 3, 3))
    assert together(classes, w["a"][0].repeat_interleave(2), w["b"][0])
    assert len(set(classes.of[w["a"][0]].tolist())) == 3


def test_a_transposed_convolution_reads_rows_and_makes_columns():
    x = torch.rand(1, 1, 4, 4)
    run = lambda m: F.conv_transpose2d(F.conv2d(x, m.a), m.b)  # noqa: E731
    classes, w, labels, _ = watch(run, a=(3, 1, 1, 1), b=(3, 5, 2, 2))
    assert together(classes, w["a"][0], w["b"][0])
    assert labels[1].tolist() == w["b"][1].tolist()


def test_pixel_shuffle_ties_the_channels_of_a_pixel():
    x = torch.rand(1, 1, 2, 2)
    classes, w, labels, _ = watch(lambda m: F.pixel_shuffle(F.conv2d(x, m.a), 2), a=(8, 1, 1, 1))
    of = classes.of[w["a"][0]].view(2, 4)
    assert (of == of[:, :1]).all()
    assert of[0, 0] != of[1, 0]
    assert labels[1].tolist() == w["a"][0][::4].tolist()


def test_shared_heads_of_keys_follow_their_queries():
    def run(m):
        return F.scaled_dot_product_attention(m.q[None], m.k[None], m.k[None], enable_gqa=True)

    classes, w, _, _ = watch(run, q=(4, 5, 8), k=(2, 5, 8))
    assert together(classes, w["q"][0], w["k"][0].repeat_interleave(2))
    assert together(classes, w["q"][2], w["k"][2])
    assert classes.lossy[classes.of[w["q"][2]]].all()


def test_means_are_lossy_and_sums_of_what_is_zero_are_not():
    x = torch.rand(2, 1)
    for reduce, lossy in ((torch.mean, True), (torch.sum, False), (torch.amax, True)):
        classes, w, _, _ = watch(lambda m, reduce=reduce: reduce(x @ m.a, dim=1), a=(1, 4))
        assert bool(classes.lossy[classes.of[w["a"][1]]].all()) is lossy
    classes, w, _, _ = watch(lambda m: (x @ m.a).sigmoid().sum(1), a=(1, 4))
    assert classes.lossy[classes.of[w["a"][1]]].all()


def test_a_length_that_is_expanded_back_fits_its_model():
    x = torch.rand(2, 1)
    classes, w, labels, _ = watch(lambda m: F.normalize(x @ m.a), a=(1, 4))
    assert not any(frozen(classes, w["a"][1]))
    assert labels[1].tolist() == w["a"][1].tolist()


def test_memory_that_is_used_past_the_watch_freezes():
    model = Weights(a=(4, 6))
    tracer = Tracer(model)
    ids = tracer.flows[0].of(model.a)
    with tracer, torch.no_grad():
        torch.from_numpy(model.a.detach().numpy()[:, :3]) + 1
    classes = tracer.classes()["last"]
    assert all(frozen(classes, ids[1]))


def test_an_alias_that_is_made_past_the_watch_is_known_by_its_memory():
    model = Weights(a=(4, 6))
    tracer = Tracer(model)
    ids = tracer.flows[0].of(model.a)
    with tracer, torch.no_grad():
        twin = torch.from_numpy(model.a.detach().numpy()) + 1
    assert tracer.flows[0].of(twin)[1].tolist() == ids[1].tolist()


def test_results_written_into_given_memory_are_tied_to_it():
    model = Weights(a=(4,))
    model.register_buffer("kept", torch.zeros(4))
    tracer = Tracer(model)
    a, kept = tracer.flows[0].of(model.a)[0], tracer.flows[0].of(model.kept)[0]
    with tracer, torch.no_grad():
        torch.mul(model.a, 2.0, out=model.kept)
    assert together(tracer.classes()["last"], a, kept)
