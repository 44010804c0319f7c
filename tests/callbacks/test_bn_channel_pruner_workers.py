"""Workers that are spawned or forked: their smaller model comes back to the process that started them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import loader, same, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pruned import net, pruner, widths

HERE = Path(__file__).parents[1]
SCENARIOS = ["spawned", "mixin", "end", "never"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """By scenario: what the first worker had, and what this one got."""
    folder = tmp_path_factory.mktemp("workers")
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", str(HERE / "pruned_workers.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    names = ("worker.pt", "parent.pt")
    return {s: [torch.load(folder / s / name, weights_only=True) for name in names] for s in SCENARIOS}


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_model_that_comes_back_is_the_workers(ends, scenario):
    worker, parent = ends[scenario]
    assert (parent["widths"] == [16, 8, 12]) is (scenario == "never")
    assert parent["widths"] == worker["widths"]
    assert same(parent["weights"], worker["weights"])
    assert torch.equal(parent["says"], worker["says"])  # though a buffer of its layers is not in any state dict
    assert parent["same objects"]
    assert parent["finite"]  # it trains on, in the process that it came back to


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "mixin"])
def test_an_attached_callback_knows_what_its_workers_have_cut(ends, scenario):
    worker, parent = ends[scenario]
    assert parent["channels"] == worker["channels"] != {}


@pytest.mark.parametrize("shrink", ["live", "end"])
@pytest.mark.parametrize("way", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_a_model_that_could_not_take_back_fewer_channels_is_refused_before_the_fit(way, shrink):
    """Else all would train to the end, and fail there."""
    cut, model = pruner(0.5, shrink=shrink), net()
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=r"Call pruner\.attach\(model\) before fit"):
        cut.setup(trainer([cut], strategy=way, devices=2), model, "fit")
    assert same(weights(model), before)
    assert not model._load_state_dict_pre_hooks


@pytest.mark.parametrize(("keep", "settings"), [(0.5, {"shrink": "never"}), (1.0, {})], ids=str)
def test_a_pruner_that_takes_nothing_out_is_not(keep, settings):
    cut = pruner(keep, **settings)
    cut.setup(trainer([cut], strategy="ddp_spawn", devices=2), net(), "fit")


def test_one_process_needs_nothing_of_it_and_saves_nothing_of_it():
    cut, model = pruner(0.5), net()
    cut.attach(model)
    trainer([cut], max_epochs=2).fit(model, loader())
    assert sum(widths(model)) == 18
    assert model.state_dict().keys() == net().state_dict().keys()
