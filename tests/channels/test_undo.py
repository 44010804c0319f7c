"""A cut that fails anywhere leaves the model, its gradients and its optimizer as they were."""

import pytest
import torch
from channels.silent import State, chosen, leaves
from channels.zoo import BY_NAME
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.channels.trace import analyse

KINDS = ("resnet", "embedding_tied_to_the_head", "spectral_norm")


class Fails(TorchDispatchMode):
    """The operation number ``at`` raises, once."""

    def __init__(self, at):
        super().__init__()
        self.at, self.seen = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen == self.at:
            raise RuntimeError(f"operation {self.at}")
        return func(*args, **(kwargs or {}))


def stepped(name):
    """A model with gradients and momenta, and what was found out about it."""
    kind = BY_NAME[name]
    model = kind.model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        sum(leaf.pow(2).mean() for leaf in leaves(model(*kind.inputs()))).backward()
        optimizer.step()
    return kind, model, optimizer, analyse(model, lambda: model(*kind.inputs()))


def held(optimizer):
    """The state, by value."""
    return [
        {key: value.clone() if torch.is_tensor(value) else value for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def same(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_that_fails_at_any_operation_leaves_everything_as_it_was(name):
    _, model, optimizer, graph = stepped(name)
    stay, _ = chosen(graph, 0)
    before, momenta, failures = State.of(model), held(optimizer), 0
    step = 1
    while True:
        fails = Fails(step)
        try:
            with fails:
                shrink(model, graph, stay, [optimizer])
            break
        except RuntimeError as error:
            assert f"operation {step}" in str(error)  # noqa: PT017
        assert before.same(model), step
        assert same(momenta, held(optimizer)), step
        failures, step = failures + 1, step + max(1, step // 12)
    assert failures > 20
    assert not before.same(model)


class Stubborn(nn.Conv2d):
    """Its number of inputs is set once."""

    def __setattr__(self, name, value):
        if name == "in_channels" and self.__dict__.get(name, value) != value:
            raise AttributeError("in_channels is fixed")
        super().__setattr__(name, value)


def stubborn():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Stubborn(8, 6, 3), nn.Conv2d(6, 2, 1))


PICTURE = torch.zeros(1, 3, 8, 8)


def test_a_module_that_refuses_a_new_width_is_left_as_it_was():
    model = stubborn()
    graph = analyse(model, lambda: model(PICTURE))
    before = State.of(model)
    with pytest.raises(AttributeError, match="in_channels is fixed"):
        shrink(model, graph, {"0": torch.arange(4)})
    assert before.same(model)
    model(PICTURE)


def test_the_probe_freezes_what_a_module_refuses_and_tells_why():
    model = stubborn()
    before = State.of(model)
    graph = probe(model, analyse(model, lambda: model(PICTURE)), lambda: model(PICTURE))
    assert [(atom.name, atom.channels) for atom in graph.atoms] == [("3", 6)]
    assert "in_channels is fixed" in graph.frozen["0.weight:0"]
    assert before.same(model)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"stem.conv": [0, 1], "nonsense": [0]}, "nonsense"),
        ({"stem.conv": [0, 8]}, "8"),
        ({"stem.conv": [-1, 2]}, "-1"),
        ({"stem.conv": []}, "stem.conv"),
    ],
)
def test_wrong_channels_are_refused_by_name_before_anything_is_cut(kept, words):
    _, model, _, graph = stepped("resnet")
    before = State.of(model)
    first = {graph.atoms[-1].name: torch.arange(3)}
    with pytest.raises(ValueError, match=words):
        shrink(model, graph, first | {name: torch.tensor(indices, dtype=torch.int64) for name, indices in kept.items()})
    assert before.same(model)


def test_a_graph_of_other_shapes_is_refused():
    _, model, _, graph = stepped("resnet")
    shrink(model, graph, {graph.atoms[0].name: torch.arange(5)})
    before = State.of(model)
    with pytest.raises(ValueError, match=graph.atoms[0].places[0].name):
        shrink(model, graph, {graph.atoms[0].name: torch.arange(4)})
    assert before.same(model)


def test_a_model_that_cannot_run_is_left_as_it_was_and_its_own_error_is_raised():
    model = stubborn().train()
    before, fast = State.of(model), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="expected input"):
        analyse(model, lambda: model(torch.zeros(1, 5, 8, 8)))
    assert before.same(model)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()


def test_a_probe_whose_first_run_fails_leaves_the_model_as_it_was():
    model = stubborn().train()
    graph = analyse(model, lambda: model(PICTURE))
    before = State.of(model)
    with pytest.raises(RuntimeError, match="no data"):
        probe(model, graph, lambda: (_ for _ in ()).throw(RuntimeError("no data")))
    assert before.same(model)
