"""The watch around any run: live steps, wrappers, calls to be made again, and nothing left behind."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_sparse.channels import Tracer, analyse, probe, shrink
from lightning_sparse.core.select import clean

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def found(graph):
    return {atom.name: atom.channels for atom in graph.atoms}


def test_a_live_step_may_be_entered_in_one_hook_and_left_in_another():
    model = mlp()
    tracer = Tracer(model)
    tracer.open()
    loss = F.mse_loss(model(X), torch.zeros(4, 2))
    tracer.finish(loss)
    tracer.close()
    loss.backward()
    assert found(tracer.graph()) == {"0": 8}
    assert model[0].weight.grad is not None


def test_the_models_own_output_is_frozen_whatever_the_loss_sees_of_it():
    model = mlp()
    with Tracer(model) as tracer:
        loss = model(X)[:, :1].mean()
    tracer.finish(loss)
    graph = tracer.graph()
    assert found(graph) == {"0": 8}
    assert graph.frozen["3.weight:0"] == "the model's output"


def test_what_nothing_reads_is_not_offered():
    model = nn.ModuleDict({"a": nn.Linear(3, 8), "b": nn.Linear(8, 6)})
    with Tracer(model) as tracer:
        loss = model["b"](model["a"](X)).square().mean()
    tracer.finish(loss)
    graph = tracer.graph()
    assert found(graph) == {"a": 8}
    assert graph.frozen["b.weight:0"] == "nothing in the model reads it"


def test_nothing_of_the_run_is_kept_alive_and_no_hook_stays():
    model = mlp()
    tracer = Tracer(model)
    with tracer:
        output = model(X)
    tracer.finish(output)
    tracer.graph()
    gone = weakref.ref(output)
    del output
    gc.collect()
    assert gone() is None  # though its inputs wait to be played again
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_run_that_raises_leaves_no_hooks_and_modes_as_they_were():
    model = mlp().train()
    model[1].eval()

    def run():
        model(X)
        raise RuntimeError("the run")

    with pytest.raises(RuntimeError, match="the run"):
        analyse(model, run)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (model.training, model[1].training) == (True, False)


def test_random_states_and_running_statistics_are_as_before():
    model = nn.Sequential(mlp(), nn.Dropout(0.5)).train()
    state, mean = torch.get_rng_state(), model[0][1].running_mean.clone()
    analyse(model, lambda: model(X) + torch.rand(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0][1].running_mean, mean)


def test_calls_from_outside_are_made_again_without_what_is_between():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    model, counted = Step(), []
    tracer = Tracer(model)
    with tracer:
        hidden = model.body(X)
        counted.append(1)
        tracer.finish(model.head(hidden))
    graph, run = tracer.graph(), tracer.replay()
    assert [tuple(t.shape) for t in run()] == [(4, 2)]
    assert counted == [1]
    again = probe(model, graph, run)
    assert found(again) == {"body": 8}
    shrink(model, again, {"body": torch.arange(3)})
    assert [tuple(t.shape) for t in run()] == [(4, 2)]


def test_calls_under_autocast_are_made_again_under_autocast():
    model = nn.Linear(3, 2)
    tracer = Tracer(model)
    with tracer, torch.autocast("cpu", torch.bfloat16):
        model(X)
    (output,) = tracer.replay()()
    assert output.dtype == torch.bfloat16


def test_inference_mode_is_taken_apart():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()

    def run():
        with torch.inference_mode():
            return model(torch.rand(1, 3, 8, 8))

    assert found(analyse(model, run)) == {"0": 8}


def test_a_compiled_model_is_watched_as_it_was_written():
    model = mlp().eval()
    compiled = torch.compile(model, backend="eager")
    plain = analyse(model, lambda: model(X))
    graph = analyse(compiled, lambda: compiled(X))
    assert [a.name for a in graph.atoms] == [a.name for a in plain.atoms]
    assert [p.name for p in graph.atoms[0].places] == [clean(p.name) for p in plain.atoms[0].places]


def test_recomputed_activations_are_seen():
    model = mlp()
    with Tracer(model) as tracer:
        loss = F.mse_loss(checkpoint(model, X, use_reentrant=False), torch.zeros(4, 2))
    tracer.finish(loss)
    assert found(tracer.graph()) == {"0": 8}


def test_functions_with_a_gradient_of_their_own_are_seen_through():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    with Tracer(model) as tracer:
        loss = F.mse_loss(model[1](Double.apply(model[0](X))), torch.zeros(4, 2))
    tracer.finish(loss)
    assert found(tracer.graph()) == {"0": 8}


def test_what_is_computed_past_torch_is_frozen_or_found_by_its_readers():
    """A round trip through numpy has no labels: what reads it is frozen, and what made it has no reader."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))

    def run():
        return model[1](torch.from_numpy(model[0](X).numpy() * 2))

    graph = analyse(model, run)
    assert found(graph) == {}
    assert graph.frozen["0.weight:0"] == "nothing in the model reads it"


def test_flops_are_two_for_each_multiplication_and_addition():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.utils.parametrizations.weight_norm(nn.Linear(4 * 12 * 12, 5)),
    )
    graph = analyse(model, lambda: model(torch.rand(2, 3, 8, 8)))
    assert graph.flops == {
        "0.weight": 2 * 2 * 8 * 8 * 8 * 3 * 9,
        "1.weight": 2 * 2 * 6 * 6 * 8 * 9,
        "2.weight": 2 * 2 * 6 * 6 * 8 * 4 * 4,
        "4.parametrizations.weight.original1": 2 * 2 * 576 * 5,
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_modules_in_torchscript_stay_as_they_are():
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 8)), nn.Linear(8, 6), nn.Linear(6, 2)).train()
    graph = probe(model, analyse(model, lambda: model(X)), lambda: model(X))
    assert found(graph) == {"1": 6}
    assert "TorchScript" in graph.frozen["0.weight:0"]
    assert model[0].training


def test_lazy_parameters_are_refused():
    model = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="weight has no shape yet; run one batch"):
        analyse(model, lambda: None)


def test_parameters_that_share_memory_are_frozen():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    model.register_buffer("view", model[0].weight.detach()[:, :2])
    graph = analyse(model, lambda: model(X))
    assert found(graph) == {}
    assert graph.frozen["0.weight:0"] == "it shares its memory with another parameter or buffer"


def test_reasons_name_the_layer_and_what_is_tied_to_it():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    graph = analyse(model, lambda: model[2](model[1](model[0](X)).view(-1, 2, 4)[..., [0, 1, 2, 3, 0, 1, 2, 3]]))
    assert "taken by number (index in the model)" in graph.frozen["1.weight:0"]
    assert graph.frozen["1.bias:0"].startswith("tied to 1.weight:0, which is frozen: ")
    assert found(graph) == {"0": 8}
