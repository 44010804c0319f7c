"""A run whose channels were cut is the run in which they are zero: by hand, and by shrink="never" and "end"."""

import pytest
import torch
from helpers import weights
from lightning.pytorch import Callback
from pruned import fit, net, pruner


class Masked(Callback):
    """The dense run with channels zeroed by hand: weights, gradients, optimizer state, by another run's indices.

    Running variances stay: they only scale zeros.
    """

    def __init__(self, kept, after):
        self.kept, self.after, self.on = kept, after, False

    def dead(self, module):
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, dims in self.kept.items():
            for dim, index in dims.items():
                gone = [i for i in range(named[name].shape[dim]) if i not in index.tolist()]
                yield name, named[name], (slice(None),) * dim + (gone,)

    def clear(self, trainer, module):
        with torch.no_grad():
            for name, tensor, where in self.dead(module):
                if "running" not in name:
                    tensor[where] = 0
                    state = trainer.optimizers[0].state.get(tensor, {})
                    for value in state.values():
                        if value is not None and value.shape == tensor.shape:
                            value[where] = 0

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.after - 1:
            self.on = True
            self.clear(trainer, pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for _, tensor, where in self.dead(pl_module) if self.on else ():
            if tensor.grad is not None:
                tensor.grad[where] = 0

    def on_train_batch_end(self, trainer, pl_module, *others):
        if self.on:
            self.clear(trainer, pl_module)


def left(tensors, kept):
    """What a cut leaves of dense tensors."""
    return {name: _left(value, kept.get(name, {})) for name, value in tensors.items()}


def _left(value, dims):
    for dim, index in dims.items():
        value = value.index_select(dim, index)
    return value


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "amsgrad"])
def test_a_shrunk_run_is_the_dense_run_with_these_channels_at_zero(optimizer):
    """Ten steps on, to the last bits of float64: kernels add up in another order where zeros are left out."""
    settings = {"max_epochs": 2, "limit_train_batches": 10, "precision": "64-true"}
    cut = pruner(0.5, penalty=None, compensate=False)
    small, run, _ = fit(cut, model=net(optimizer), **settings)
    kept = cut.recipe.indices()
    dense, masked, _ = fit(Masked(kept, after=1), model=net(optimizer), **settings)
    expected = left(weights(dense), kept)
    assert small.stem.weight.dtype == torch.float64
    for name, value in weights(small).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13, msg=name)
    names = [name for name, _ in small.named_parameters()]
    for name, a, b in zip(names, run.optimizers[0].state.values(), masked.optimizers[0].state.values(), strict=True):
        for key in a:
            if isinstance(a[key], torch.Tensor) and a[key].ndim:
                found = _left(b[key], kept.get(name, {}))
                torch.testing.assert_close(a[key], found, rtol=1e-10, atol=1e-13, msg=f"{name} {key}")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_never_and_live_choose_the_same_channels_and_train_the_same(accumulate):
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5, "precision": "64-true"}
    found = {}
    for shrink in ("live", "never", "end"):
        cut = pruner(0.4, at=[1, 2], shrink=shrink)
        model, _, _ = fit(cut, model=net("adamw"), **settings)
        found[shrink] = (cut, model)
    kept = found["live"][0].recipe.indices()
    for shrink in ("never", "end"):
        other = found[shrink][0].recipe.indices()
        assert kept.keys() == other.keys()
        assert all(torch.equal(kept[n][d], other[n][d]) for n in kept for d in kept[n])
    live, never, end = (weights(found[shrink][1]) for shrink in ("live", "never", "end"))
    assert never["stem.weight"].shape[0] == 16
    for name, value in left(never, kept).items():
        torch.testing.assert_close(live[name], value, rtol=1e-10, atol=1e-12, msg=name)
        torch.testing.assert_close(end[name], value, rtol=0, atol=0, msg=name)
    dense = dict(found["never"][1].named_parameters())
    for name in kept.keys() & dense.keys():
        alive = torch.ones_like(dense[name], dtype=torch.bool)
        for dim, index in kept[name].items():
            gone = torch.ones(dense[name].shape[dim], dtype=torch.bool)
            gone[index] = False
            alive[(slice(None),) * dim + (gone,)] = False
        assert not bool(dense[name][~alive].any())
