"""What SNIP, GraSP, SynFlow and rewinding cannot work with is refused with names and a way out, before any change."""

import threading

import pytest
import torch
from at_init import X, Y, cost, engine, net, refused
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sparse import SNIP, GlobalMagnitude, GraSP, SynFlow

# ---- Hyper-parameters


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SNIP(batches=0), ["SNIP", "batches", "0"]),
        (lambda: SNIP(batches=True), ["SNIP", "batches", "True"]),
        (lambda: SynFlow(iterations=0), ["SynFlow", "iterations", "0"]),
        (lambda: SynFlow(iterations=1.5), ["SynFlow", "iterations", "1.5"]),
        (lambda: SynFlow(iterations=10_001), ["SynFlow", "iterations", "at most 10,000", "10001"]),
        (lambda: GraSP(samples=0, batches=-1, temperature=0.0), ["GraSP", "samples", "batches", "temperature"]),
        (lambda: GraSP(samples=2, batches=3), ["GraSP", "samples=2", "batches=3"]),
        (lambda: GraSP(temperature=float("nan")), ["GraSP", "temperature", "nan"]),
        (lambda: GlobalMagnitude(rounds=0, stop=-1, rewind=2.5), ["rounds", "0", "stop", "-1", "rewind", "2.5"]),
        (lambda: GlobalMagnitude(rewind=0), ["rewind", "0", "'init'"]),
        (lambda: GlobalMagnitude(rewind="start"), ["rewind", "'start'", "'init'"]),
        (lambda: GlobalMagnitude(rewind_schedule=True), ["rewind_schedule=True", "rewind='init'"]),
    ],
)
def test_hyper_parameters_that_cannot_be_right_are_all_named(make, words):
    with pytest.raises(ValueError) as found:
        make()
    assert [word for word in words if word not in str(found.value)] == [], str(found.value)


@pytest.mark.parametrize(("rewind", "stop"), [(5, 10), (7, 10), (0.5, 1.0)])
def test_going_back_to_after_the_first_pruning_is_refused(rewind, stop):
    words = ["rewind=", "before the first pruning at step 5"]
    refused(words, GlobalMagnitude(rounds=2, stop=stop, rewind=rewind), total_steps=10)


def test_more_rounds_than_steps_are_refused():
    refused(["rounds=5", "step 3"], GlobalMagnitude(rounds=5, stop=3))


# ---- Data


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP()])
def test_nothing_to_take_gradients_of_is_refused(algorithm):
    refused([type(algorithm).__name__, "batches=", "loss="], algorithm, batches=None)
    refused([type(algorithm).__name__, "batches=", "loss="], algorithm, loss=None)


def test_synflow_without_an_input_is_refused():
    refused(["SynFlow", "example_inputs=", "example_input_array"], SynFlow(), inputs=None)


def test_no_batches_are_refused():
    refused(["no batch", "empty"], SNIP(), batches=[])
    refused(["2 batches", "has 0", "batches="], GraSP(samples=None), batches=[])
    refused(["2 batches", "has 1", "batches="], GraSP(samples=None))
    refused(["{0: 0, 1: 0, 2: 0}"], GraSP(samples=2), batches=[])


def test_grasp_names_the_classes_that_a_loader_lacks():
    few = [(X[Y != 1][:20], Y[Y != 1][:20])]
    refused(["25 samples", "{0: 10, 1: 0, 2: 10}", "samples=", "samples=None"], GraSP(), batches=few)


@pytest.mark.parametrize(
    "batch", [X, (X, Y.float()), (X, Y[:, None]), (X, Y[:5]), {"x": X, "y": Y}, (X,), (X, Y, Y), (X, Y.tolist())]
)
def test_grasp_refuses_batches_without_classes(batch):
    refused(["inputs, class numbers", type(batch).__name__, "samples=None"], GraSP(samples=2), batches=[batch])


def test_grasp_refuses_a_head_that_makes_no_logits():
    refused(["head='final'", "0, 1, 2"], GraSP(head="final"))
    refused(["ReLU", "head=", "samples=None"], GraSP(head="1"))


@pytest.mark.parametrize(
    ("loss", "word"), [(lambda m, b: m(b[0]).sum().detach(), "differentiated"), (lambda m, b: m(b[0]), "scalar"),
                       (lambda m, b: m(b[0]).sum().item(), "float"), (lambda m, b: None, "NoneType")],
)  # fmt: skip
@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=2)])
def test_what_is_no_loss_is_refused(algorithm, loss, word):
    refused(["the loss of a batch", word], algorithm, loss=loss)


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=2), SynFlow()])
def test_a_model_that_cannot_be_copied_is_refused(algorithm):
    model = net()
    model.lock = threading.Lock()
    refused(["cannot be copied", "lock", "__deepcopy__"], algorithm, model)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


@pytest.mark.parametrize("batches", [DataLoader(Stream(), batch_size=8), torch.stack([X, X])], ids=["stream", "tensor"])
def test_anything_that_can_be_iterated_gives_batches(batches):
    loss = (lambda m, b: m(b).square().sum()) if isinstance(batches, torch.Tensor) else cost
    assert engine(SNIP(batches=2), batches=batches, loss=loss).density() == pytest.approx(0.2)


# ---- Flows that are large


def test_synflow_ranks_deep_networks_whose_flow_is_beyond_float32():
    layers = [nn.Linear(64, 64, bias=False) for _ in range(30)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=3.0)
    found = engine(SynFlow(iterations=20), nn.Sequential(*layers), inputs=torch.ones(1, 64)).densities()
    assert all(0.1 < density < 0.3 for density in found.values()), found


def test_synflow_refuses_a_flow_beyond_float64():
    layers = [nn.Linear(64, 64, bias=False) for _ in range(60)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e5)
    refused(["SynFlow", "overflows", "SNIP"], SynFlow(1), nn.Sequential(*layers), inputs=torch.ones(1, 64))


# ---- What SynFlow is weak on


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.head = nn.MultiheadAttention(8, 2), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.attention(x, x, x)[0]))


def test_synflow_warns_of_layer_norm_and_attention_by_name():
    with pytest.warns(UserWarning, match=r"attention, norm.*SNIP or GraSP"):
        engine(SynFlow(2), Attending(), inputs=torch.ones(1, 5, 8))


def test_synflow_says_nothing_of_batch_norm():
    assert engine(SynFlow(2), net(nn.BatchNorm1d(30))).density() == pytest.approx(0.2)


def test_synflow_says_that_forward_does_not_take_its_input():
    refused(["forward()", "RuntimeError", "example_input_array"], SynFlow(), inputs=torch.ones(1, 7))
    refused(["forward()", "TypeError", "example_input_array"], SynFlow(), inputs={"wrong": X})


# ---- Densities


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=2), SynFlow(2), GlobalMagnitude(stop=1)])
def test_a_density_for_each_glob_is_kept(algorithm):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = engine(algorithm, model, density={"0*": 0.5, "2*": 0.1}, optimizers=[optimizer])
    cost(model, (X, Y)).backward()
    optimizer.step()
    assert found.densities() == {"0.weight": 0.5, "2.weight": 0.1}
