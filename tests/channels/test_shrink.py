"""All or nothing: cutting, masking, the journal, and what modules say of themselves."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_sparse.channels import analyse, kept_indices, mask, probe, shrink
from lightning_sparse.channels.atoms import Atom, Graph, Place
from lightning_sparse.channels.attributes import fix
from lightning_sparse.channels.journal import undoable
from lightning_sparse.core.surgery import resize

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEPT = {"0": torch.tensor([0, 3, 5]), "3": torch.tensor([1, 2])}


def net():
    torch.manual_seed(1)
    first = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(6, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(64, 5))


def graph_of(model):
    return analyse(model, lambda: model(X))


def everything(model):
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = [(id(p), p.data_ptr()) for p in model.parameters()]
    return values, places, str(model), [m.training for m in model.modules()]


def test_a_cut_model_computes_what_the_masked_one_does():
    model, quiet = net().eval(), net().eval()
    graph = graph_of(model)
    mask(quiet, graph, KEPT)
    shrink(model, graph, KEPT)
    torch.testing.assert_close(model(X), quiet(X), rtol=0, atol=1e-6)
    assert (model[0].out_channels, model[1].num_features, model[3].in_channels) == (3, 3, 3)
    assert (model[3].out_channels, model[4].num_parameters, model[6].in_features) == (2, 2, 32)


def test_masking_leaves_what_divides_and_what_stays():
    model = net()
    before = copy.deepcopy(model)
    mask(model, graph_of(model), KEPT)
    assert torch.equal(model[1].running_var, before[1].running_var)
    assert model[1].weight.eq(0).tolist() == [False, True, True, False, True, False]
    assert torch.equal(model[3].weight[1:3][:, KEPT["0"]], before[3].weight[1:3][:, KEPT["0"]])


def test_a_direction_of_weight_norm_is_not_masked_where_its_length_would_be_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.rand(4, 3)
    graph = analyse(model, lambda: model(x))
    (atom,) = graph.atoms
    cut = copy.deepcopy(model)
    shrink(cut, graph, {atom.name: torch.tensor([0, 4])})
    mask(model, graph, {atom.name: torch.tensor([0, 4])})
    torch.testing.assert_close(cut(x), model(x))


@pytest.mark.parametrize("state", [True, False])
def test_an_error_in_the_middle_leaves_model_and_optimizer_as_they_were(monkeypatch, state):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    if state:
        model(X).sum().backward()
        optimizer.step()
    before, rows = everything(model), copy.deepcopy(optimizer.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    def fails(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(sys.modules["lightning_sparse.channels.shrink"], "fix", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        shrink(model, graph_of(model), KEPT, [optimizer])
    after = everything(model)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert after[1:] == before[1:]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)
    now = optimizer.state_dict()["state"]
    assert now.keys() == rows["state"].keys()
    for key, row in rows["state"].items():
        assert all(torch.equal(now[key][name], value) for name, value in row.items())


def test_a_stale_graph_is_refused():
    model = net()
    graph = graph_of(model)
    shrink(model, graph, KEPT)
    with pytest.raises(ValueError, match=r"0\.weight has the shape \[3, 3, 3, 3\], and had \[6, 3, 3, 3\]"):
        shrink(model, graph, KEPT)
    with pytest.raises(ValueError, match="analyse the model anew"):
        probe(model, graph, lambda: model(X))


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"9": torch.tensor([0])}, "no atom is named '9'"),
        ({"0": torch.tensor([6])}, r"channels 0 \.\.\. 5"),
        ({"0": torch.tensor([], dtype=torch.int64)}, "asked to keep"),
    ],
)
def test_what_is_no_channel_is_refused(kept, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        shrink(model, graph_of(model), kept)


def test_two_atoms_in_one_dimension_are_cut_together():
    left = Atom("a", (Place("w", 1, torch.tensor([[0], [1]])),), lossy=False)
    right = Atom("b", (Place("w", 1, torch.tensor([[2], [3], [4]])),), lossy=False)
    graph = Graph((left, right), {}, {}, {}, {"w": (2, 6)})
    found = kept_indices(graph, {"a": torch.tensor([1]), "b": torch.tensor([0, 2])})
    assert found["w"][1].tolist() == [1, 2, 4, 5]
    assert kept_indices(graph, {"a": torch.tensor([0, 1])}) == {}


def test_the_journal_puts_back_what_a_run_changes():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            self.seen += 1
            self.last = x
            self.register_buffer("more", x)
            return x

    model = Careless()
    before = everything(model)
    with undoable(model):
        model(torch.ones(2))
        model.eval()
        resize(model.weight, (5,))
    after = everything(model)
    assert after[1:] == before[1:]
    assert after[0].keys() == before[0].keys()
    assert not hasattr(model, "last")
    assert model.seen.item() == 0


def test_a_graph_of_another_model_is_refused():
    model = net()
    graph = replace(graph_of(model), shapes={"other.weight": (3,)})
    with pytest.raises(ValueError, match=r"other\.weight is not in the model"):
        shrink(model, graph, {})


@pytest.mark.parametrize(
    ("module", "name", "shape", "expected"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "weight", (5, 1, 3, 3), {"groups": 5, "in_channels": 5, "out_channels": 5}),
        (nn.Conv2d(4, 8, 3, groups=4), "weight", (6, 1, 3, 3), {"groups": 3, "in_channels": 3, "out_channels": 6}),
        (nn.Conv2d(8, 8, 3, groups=2), "weight", (6, 3, 3, 3), {"groups": 2, "in_channels": 6, "out_channels": 6}),
        (nn.ConvTranspose2d(8, 6, 2), "weight", (5, 4, 2, 2), {"in_channels": 5, "out_channels": 4}),
        (nn.ConvTranspose1d(4, 4, 2, groups=4), "weight", (3, 1, 2), {"groups": 3, "out_channels": 3}),
        (nn.Linear(8, 6), "weight", (5, 4), {"in_features": 4, "out_features": 5}),
        (nn.Bilinear(3, 4, 5), "weight", (5, 2, 4), {"in1_features": 2, "in2_features": 4}),
        (nn.GroupNorm(2, 8), "weight", (6,), {"num_channels": 6, "num_groups": 2}),
        (nn.LayerNorm(8), "weight", (6,), {"normalized_shape": (6,)}),
        (nn.BatchNorm1d(8, affine=False), "running_mean", (6,), {"num_features": 6}),
        (nn.Embedding(9, 8), "weight", (9, 6), {"embedding_dim": 6, "num_embeddings": 9}),
        (nn.GRU(8, 4), "weight_ih_l0", (12, 6), {"input_size": 6, "hidden_size": 4}),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", (12, 4), {"embed_dim": 4, "head_dim": 2, "kdim": 4}),
    ],
)
def test_attributes_follow(module, name, shape, expected):
    tensor = dict([*module.named_parameters(), *module.named_buffers()])[name]
    old = tuple(tensor.shape)
    resize(tensor, shape)
    fix(module, [name], {name: old})
    assert {key: getattr(module, key) for key in expected} == expected


def test_a_module_of_another_package_is_followed_by_names_that_speak_of_widths():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_size, self.heads, self.steps = 8, 8, 8
            self.scale = nn.Parameter(torch.ones(8))

    module = Own()
    resize(module.scale, (5,))
    fix(module, ["scale"], {"scale": (8,)})
    assert (module.hidden_size, module.heads, module.steps) == (5, 8, 8)
