"""Questions for peers.py, answered by a small training with each of three libraries, looked at from outside.

A network of 2,000 weights trains under a Trainer, 200 of them to live, and what its forward passes use is counted:
nothing asks the library under test. Each library is set up by the lines that its documentation gives for one density
that stays; these lines are counted too.
"""

import ast
import copy
import inspect
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from watched import Library, Lines, Net, effective, fit, live

from lightning_sparse import MaskUpdater, RigL

LIVE, DENSITY, SPARSITY = 200, 0.1, 0.9


def nothing() -> None:
    """No call is needed after fit."""


def mask_updater(model: nn.Module) -> Lines:
    """Ten per cent from the first step on; masks move."""
    return [MaskUpdater(RigL(every=2), density=DENSITY)], nothing


def model_pruning(model: nn.Module) -> Lines:
    """Once, at the end of the first epoch; without ``apply_pruning`` each epoch would prune 90 % of what is left."""
    return [
        ModelPruning(
            "l1_unstructured",
            amount=SPARSITY,
            parameter_names=["weight"],
            apply_pruning=lambda epoch: epoch == 0,
            use_lottery_ticket_hypothesis=False,
        )
    ], nothing


def torch_ao(model: nn.Module) -> Lines:
    """Once, before training."""
    sparsifier = WeightNormSparsifier(SPARSITY, sparse_block_shape=(1, 1))
    sparsifier.prepare(model, config=None)
    sparsifier.step()
    return [], sparsifier.squash_mask


LIBRARIES: dict[str, Library] = {
    "MaskUpdater": mask_updater,
    "ModelPruning": model_pruning,
    "torch.ao.pruning": torch_ao,
}
DEFAULTS: dict[Library, Library] = {  # which parameters a library chooses by itself; pruned once, to compare
    mask_updater: lambda model: ([MaskUpdater(density=DENSITY)], nothing),
    model_pruning: lambda model: (
        [ModelPruning("l1_unstructured", amount=SPARSITY, apply_pruning=lambda epoch: epoch == 0)],
        nothing,
    ),
    torch_ao: torch_ao,
}


class Found(NamedTuple):
    """What a probe saw: yes or no, and a few words for the table."""

    ok: bool
    words: str = ""


def at_most(count: int) -> Found:
    """No more non-zero weights than were asked for."""
    return Found(count <= LIVE, "" if count <= LIVE else f"{count - LIVE:,} too many")


def saver(folder: str) -> ModelCheckpoint:
    """A checkpoint at the end of every epoch."""
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


def write(model: nn.Module) -> None:
    """What weight noise, or clipping by hand, does to weights between two steps."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)


def statements(library: Library) -> Found:
    """The import, the function's statements, the call after fit; a callback in the Trainer's list is one."""
    function = ast.parse(textwrap.dedent(inspect.getsource(library))).body[0]
    assert isinstance(function, ast.FunctionDef)
    return Found(True, str(1 + len(function.body[1:])))  # no docstring; `return` stands for the callback or last call


def exact(library: Library) -> Found:
    """At the end of the run."""
    count = live(fit(library).model)
    return Found(count == LIVE, f"{count} of {LIVE}")


def resume(library: Library) -> Found:
    """From the checkpoint of the first epoch into a fresh model; against the run without a break."""
    with tempfile.TemporaryDirectory() as folder:
        whole = fit(library, extra=[saver(folder)])
        again = fit(library, start=Path(folder) / "epoch=0.ckpt", seed=5)
    same = all(torch.equal(a, b) for a, b in zip(effective(whole.model), effective(again.model), strict=True))
    return Found(same, "bit for bit" if same else at_most(live(again.model)).words or "other weights")


def plain_file(library: Library) -> Found:
    """A checkpoint of the second epoch loads strictly into the class, without the library."""
    with tempfile.TemporaryDirectory() as folder:
        fit(library, extra=[saver(folder)])
        stored = torch.load(Path(folder) / "epoch=1.ckpt", weights_only=False)["state_dict"]
    model = Net()
    model.load_state_dict(stored)
    return at_most(live(model))


def keys(library: Library) -> Found:
    """``model.state_dict()`` while training goes on."""
    other = fit(library).watch.keys - set(Net().state_dict())
    return Found(not other, f"`{min(other).removeprefix('net.')}`" if other else "unchanged")


def copies(library: Library) -> Found:
    """``copy.deepcopy`` of the network between two steps."""
    fit(library, also=lambda model: copy.deepcopy(model.net))
    return Found(True)


def ema(library: Library) -> Found:
    """Lightning's own callback; at the end the model is the average."""
    from lightning.pytorch.callbacks import EMAWeightAveraging  # Lightning 2.6

    return at_most(live(fit(library, extra=[EMAWeightAveraging(decay=0.7)]).model))


def swa(library: Library) -> Found:
    """Lightning's own callback; at the end the model is the average."""
    average = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    return at_most(live(fit(library, extra=[average]).model))


def convolutions(library: Library) -> Found:
    """A network of a convolution and a linear layer."""
    dense = bool(effective(fit(library, "conv").model)[0].all())
    return Found(not dense, "stay dense" if dense else "")


def norms(library: Library) -> Found:
    """Under default arguments no entry of a bias or of a LayerNorm is zero at the end."""
    parameters = [p for p in fit(DEFAULTS[library], "norm").model.parameters() if p.ndim == 1]
    zero, size = sum(int((p == 0).sum()) for p in parameters), sum(p.numel() for p in parameters)
    return Found(zero == 0, f"{zero} of {size} zeroed" if zero else "")


PROBES: dict[str, Callable[[Library], Found]] = {
    "statements a user adds, with the import": statements,
    "pruned weights are 0 in every forward pass: SGD": lambda library: at_most(fit(library).worst()),
    "… LBFGS, `step(closure)`": lambda library: at_most(fit(library, lbfgs=True).worst()),
    "… other code writes to the weights": lambda library: at_most(fit(library, also=write).worst()),
    "… the first one": lambda library: at_most(fit(library).watch.seen[0][1]),
    "as many live weights as asked": exact,
    "resume equals a run without a break": resume,
    "a checkpoint loads without the library": plain_file,
    "names in `state_dict()` while training": keys,
    "`deepcopy` while training": copies,
    "`EMAWeightAveraging` stays sparse": ema,
    "`StochasticWeightAveraging` stays sparse": swa,
    "3 x 3 convolutions": convolutions,
    "biases and norms left alone by default": norms,
}
