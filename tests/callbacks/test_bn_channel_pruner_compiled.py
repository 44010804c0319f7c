"""Compiled models: the same run as without, and one compilation more for each cut."""

import pytest
import torch
from helpers import loader, same, trainer, weights
from lightning.pytorch import Callback
from pruned import net, pruner, widths
from torch._dynamo.testing import CompileCounterWithBackend

# What torch says while it compiles, with no pruning either.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*"),
    pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated.*:DeprecationWarning"),
]
WAYS = ("whole", "in place", "a part", "a part in place")


class Count(Callback):
    """Graphs that were compiled so far, as each epoch ends."""

    def __init__(self, counter):
        self.counter, self.found = counter, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 11:
            self.found.append(self.counter.frame_count)


def run(way=None, backend="eager", **pruning):
    """Three epochs; channels leave after the first two."""
    torch._dynamo.reset()
    model, counter = net("adamw"), CompileCounterWithBackend(backend)
    given = torch.compile(model, backend=counter) if way == "whole" else model
    if way == "in place":
        model.compile(backend=counter)
    elif way == "a part":
        model.block = torch.compile(model.block, backend=counter)
    elif way == "a part in place":
        model.block.compile(backend=counter)
    count, cut = Count(counter), pruner(0.4, at=[1, 2], **pruning)
    trainer([cut, count], max_epochs=3).fit(given, loader())
    left = {name.replace("_orig_mod.", ""): value for name, value in weights(model).items()}
    return left, widths(model), count.found


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        pytest.param(way, backend, marks=[] if (way, backend) in quick else pytest.mark.slow)
        for quick in [{("whole", "eager"), ("a part", "aot_eager")}]
        for way in WAYS
        for backend in ("eager", "aot_eager")
    ],
)
def test_a_compiled_run_is_the_plain_one_bit_for_bit(way, backend, plain):
    left, left_widths, compiled = run(way, backend)
    assert left_widths == plain[1] != (16, 8, 12)
    assert same(left, plain[0])
    if hasattr(torch.compiler, "set_stance"):  # else what looks for channels is compiled too
        assert compiled == [1, 2, 3]
    assert compiled[0] < compiled[1] < compiled[2]


@pytest.mark.slow
def test_with_inductor_it_is_the_same_run_but_for_rounding(plain):
    left, left_widths, compiled = run("a part", "inductor")
    assert left_widths == plain[1]
    assert compiled == [1, 2, 3]
    for name, value in plain[0].items():
        torch.testing.assert_close(left[name], value, rtol=5e-2, atol=5e-3)


@pytest.mark.parametrize("criterion", ["taylor", pytest.param("activation", marks=pytest.mark.slow)])
def test_looking_at_gradients_or_activations_compiles_nothing(criterion):
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("torch 2.6 can switch compiled code off for a while")
    left, _, _ = run(criterion=criterion)
    again, _, compiled = run("a part", criterion=criterion)
    assert same(left, again)
    assert compiled == [1, 2, 3]
