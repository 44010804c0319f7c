"""compute="auto": each layer as it is faster, by what was measured."""

from itertools import pairwise

import pytest
import torch
from computed import close, run
from helpers import DENSITY, loader, net, trainer, weights
from lightning.pytorch import Callback
from torch import nn

from lightning_sparse import GMP, MaskUpdater, RigL
from lightning_sparse.callbacks.computing import choice
from lightning_sparse.compute import SparseLayer
from lightning_sparse.compute.measure import Timing, measure, seen


class Kinds(Callback):
    """Which layers were without zeros in each batch."""

    def __init__(self):
        self.found, self.hooks = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.hooks.append(sum(len(module._forward_pre_hooks) for module in pl_module.modules()))
        named = pl_module.named_modules()
        self.found.append({f"{name}.weight" for name, module in named if isinstance(module, SparseLayer)})


@pytest.fixture
def clock(monkeypatch):
    """Sparse layers take as long as their density says, dense ones 0.3; what was measured, in order."""
    looks = []

    def timed(dense, mask, given):
        share = float(mask.float().mean())
        looks.append((tuple(mask.shape), tuple(given.shape), round(share, 3)))
        assert type(dense) in (nn.Linear, nn.Conv2d)
        return Timing(dense=0.3, sparse=share)

    monkeypatch.setattr(choice, "measure", timed)
    return looks


def test_layers_change_when_their_density_has_halved(clock):
    kinds = Kinds()
    algorithm = GMP(every=3)
    auto = run(algorithm, "auto", callbacks=[kinds])
    close(auto, run(algorithm, "dense"))
    assert {shape for shape, *_ in clock} == {(6, 2, 3, 3), (20, 96), (5, 20)}
    assert {given for shape, given, _ in clock if shape == (20, 96)} == {(4, 96)}
    shares = [share for shape, _, share in clock if shape == (20, 96)]
    assert shares[0] == 1.0
    assert len(shares) >= 2
    assert all(after <= before / 2 for before, after in pairwise(shares))
    assert kinds.found[0] == kinds.found[1] == set()
    # by hand: of 0.25 in all, ERK gives the convolution 48 of 108 (0.44: dense stays faster), the others 0.21 and 0.86
    assert kinds.found[-1] == {"net.4.weight"}


def test_it_is_measured_once_while_the_density_stays(clock, caplog):
    kinds = Kinds()
    auto = run(RigL(every=3, stop=1.0), "auto", callbacks=[kinds])
    close(auto, run(RigL(every=3, stop=1.0), "dense"))
    assert len(clock) == 3
    assert kinds.hooks == [3] + [0] * 23
    assert kinds.found == [set()] + [{"net.4.weight"}] * 23
    printed = caplog.text
    assert "net.4.weight   0.2073   300.000    207.292    sparse" in printed
    assert "net.6.weight   0.8600   300.000    860.000     dense" in printed


def test_a_window_of_accumulated_batches_is_not_broken(clock):
    kinds = Kinds()
    settings = {"accumulate_grad_batches": 3}
    close(*(run(RigL(every=2, stop=1.0), way, callbacks=[kinds], **settings) for way in ("auto", "dense")))
    assert kinds.found[2:4] == [set(), {"net.4.weight"}]


@pytest.mark.parametrize("name", ["sparse_momentum", "str", "acdc"])
def test_an_algorithm_that_needs_dense_layers_gets_them_and_a_line(name, caplog):
    kinds, updater = Kinds(), MaskUpdater(name, DENSITY, compute="auto")
    trainer([updater, kinds], max_epochs=3).fit(net(), loader())
    assert kinds.found == [set()] * 36
    assert "all layers are computed dense" in caplog.text


def test_a_measurement_writes_nothing_and_leaves_random_states():
    dense, state = nn.Linear(64, 32), torch.get_rng_state()
    before = weights(dense)
    timing = measure(dense, torch.eye(32, 64).bool(), seen(torch.ones(4, 64)))
    assert min(timing) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert dense.weight.grad is None
    torch.testing.assert_close(weights(dense), before, rtol=0, atol=0)


def test_a_large_layer_with_few_weights_is_faster_without_zeros():
    """Twenty thousand live weights of four million: any machine must find it, without a threshold to argue about."""
    dense = nn.Linear(2048, 2048)
    mask = torch.zeros(2048, 2048, dtype=torch.bool)
    mask[:, ::200] = True
    with torch.no_grad():
        dense.weight.mul_(mask)
    timing = measure(dense, mask, seen(torch.ones(128, 2048, requires_grad=True)))
    assert timing.sparse < timing.dense
