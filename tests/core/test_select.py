"""Which parameters are made sparse."""

import pytest
import torch
from torch import nn

from lightning_sparse.core.select import clean, matches, select


def chosen(model, include=None, exclude=()):
    return [target.name for target in select(model, include, exclude)]


def refusal(model, **globs):
    with pytest.raises(ValueError) as error:
        select(model, **globs)
    return str(error.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Conv1d(4, 3, 2),
        nn.Conv2d(4, 3, 2),
        nn.Conv3d(4, 3, 2),
        nn.ConvTranspose1d(4, 3, 2),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ConvTranspose3d(4, 3, 2),
        nn.Conv2d(4, 4, 2, groups=2),  # grouped, not depthwise
    ],
    ids=repr,
)
def test_the_weight_of_a_layer_that_multiplies_is_chosen_and_its_bias_is_not(layer):
    assert chosen(nn.Sequential(layer)) == ["0.weight"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv1d(4, 8, 3, groups=4),
        nn.ConvTranspose2d(4, 4, 3, groups=4),
        nn.LayerNorm(4),
        nn.LayerNorm([4, 4]),  # its weight has two dimensions, and is a norm's all the same
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.RMSNorm([4, 4]),
        nn.Embedding(5, 4),
        nn.EmbeddingBag(5, 4),
        nn.PReLU(4),
    ],
    ids=repr,
)
def test_depthwise_norms_embeddings_and_slopes_stay_dense(layer):
    assert chosen(nn.Sequential(layer, nn.Linear(4, 2))) == ["1.weight"]


def test_a_single_column_is_not_depthwise():
    assert chosen(nn.Conv2d(1, 8, 3)) == ["weight"]  # groups == in_channels == 1


def test_the_weights_of_recurrent_layers_are_chosen_and_their_biases_are_not():
    expected = ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
    assert chosen(nn.LSTM(3, 4, num_layers=2)) == expected
    assert chosen(nn.GRU(3, 4, num_layers=2)) == expected
    assert chosen(nn.LSTM(3, 4, proj_size=2)) == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
    assert chosen(nn.GRUCell(3, 4)) == ["weight_ih", "weight_hh"]


def test_all_projections_of_attention_are_chosen():
    assert chosen(nn.MultiheadAttention(8, 2)) == ["in_proj_weight", "out_proj.weight"]
    own_widths = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert chosen(own_widths) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_the_extra_biases_of_attention_stay_dense():
    assert chosen(nn.MultiheadAttention(8, 2, add_bias_kv=True)) == ["in_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_head_tied_to_an_embedding_stays_dense(embedding_first):
    embedding, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    head.weight = embedding.weight
    order = [embedding, head] if embedding_first else [head, embedding]
    assert chosen(nn.Sequential(*order, nn.Linear(4, 4))) == ["2.weight"]


def test_tied_weights_are_chosen_once_under_their_first_name():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert chosen(nn.Sequential(first, second)) == ["0.weight"]
    assert chosen(nn.Sequential(first, first)) == ["0.weight"]


def test_a_target_finds_a_weight_that_was_replaced():
    net = nn.Sequential(nn.Linear(4, 4))
    (target,) = select(net)
    net[0].weight = nn.Parameter(torch.full((4, 4), 7.0))
    assert target.weight is net[0].weight


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.mix = nn.Parameter(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, (), ["encoder.0.weight", "encoder.2.weight", "head.weight"]),
        (None, ["head"], ["encoder.0.weight", "encoder.2.weight"]),
        (None, ["*.weight"], None),
        (["encoder.*"], (), ["encoder.0.weight", "encoder.2.weight"]),
        (["encoder.*"], ["*.2.*"], ["encoder.0.weight"]),
        (["head.weight", "encoder.0"], (), ["encoder.0.weight", "head.weight"]),  # the model's order
        (["table", "mix"], (), ["mix", "table.weight"]),  # what only a glob can ask for
        (["*"], (), ["mix", "table.weight", "encoder.0.weight", "encoder.2.weight", "head.weight"]),
    ],
)
def test_globs_over_parameter_or_module_names_choose(include, exclude, expected):
    if expected is None:
        assert "nothing to make sparse" in refusal(Tower(), include=include, exclude=exclude)
    else:
        assert chosen(Tower(), include, exclude) == expected


def test_a_glob_is_not_a_prefix_and_knows_case():
    assert not matches("head.weight", ["he"])
    assert not matches("head.weight", ["Head"])
    assert matches("head.weight", ["he*"])
    assert not matches("head.weight", [])


def test_globs_that_fit_nothing_are_all_named_with_the_candidates():
    text = refusal(Tower(), include=["encoder.*", "tail", "encoder.0.bias"], exclude=["foot"])
    assert "include=['tail', 'encoder.0.bias'] matches no weight" in text
    assert "exclude=['foot'] matches no weight" in text
    assert "candidates: mix, table.weight, encoder.0.weight, encoder.2.weight, head.weight" in text


def test_a_model_without_weights_to_choose_is_refused_with_what_could_be_named():
    assert "nothing to make sparse" in refusal(nn.ReLU())
    assert "candidates: ['0.weight']" in refusal(nn.Sequential(nn.Embedding(3, 4)))


def test_lazy_parameters_are_refused_by_name():
    text = refusal(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(3), nn.LazyConv2d(3, 3)))
    assert "lazy parameters have no shape yet: 1.weight, 2.weight; run one batch" in text


def test_a_lazy_norm_hinders_nobody():
    assert chosen(nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d())) == ["0.weight"]


def test_parameters_on_the_meta_device_are_refused_by_name():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    assert "no values: 0.weight, 1.weight; materialise" in refusal(net)


def test_frozen_weights_stay_as_they_are():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    net[0].requires_grad_(False)
    assert chosen(net) == ["1.weight"]


def test_a_model_that_is_frozen_throughout_is_refused():
    net = nn.Sequential(nn.Linear(2, 3)).requires_grad_(False)
    assert "every chosen weight is frozen (requires_grad=False): 0.weight" in refusal(net)


def test_weights_that_are_not_real_numbers_stay_as_they_are():
    net = nn.Linear(3, 3)
    net.counts = nn.Parameter(torch.zeros(3, 3, dtype=torch.int64), requires_grad=False)
    net.phases = nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    assert chosen(net, include=["*"]) == ["weight"]


def test_a_compiled_model_has_the_names_of_the_plain_one():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    assert chosen(torch.compile(net, backend="eager")) == ["0.weight", "1.weight"]
    net[1] = torch.compile(net[1], backend="eager")
    assert chosen(net) == ["0.weight", "1.weight"]
    assert chosen(net, exclude=["1"]) == ["0.weight"]


@pytest.mark.parametrize("wrapped", ["_orig_mod.a.b.w", "a._orig_mod.b.w", "_forward_module.a._orig_mod.b.w"])
def test_wrappers_leave_no_trace_in_a_name(wrapped):
    assert clean(wrapped) == "a.b.w"
