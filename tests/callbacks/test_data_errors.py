"""A Trainer whose data, loss or checkpoint cannot serve is stopped before it trains, with names and a way out."""

import threading
import warnings

import pytest
import torch
from helpers import ByHand, Net, loader, net, samples, saver, stateful, trainer, weights
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_sparse import GMP, SNIP, GlobalMagnitude, GraSP, MaskUpdater, RigL, Static, SynFlow
from lightning_sparse.callbacks.base import MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def fit(algorithm, model=None, data=None, start=None, callbacks=(), **settings):
    updater = MaskUpdater(algorithm, 0.25)
    settings = {"max_steps": 6, "enable_checkpointing": bool(callbacks), **settings}
    run = trainer([updater, *callbacks], **settings)
    run.fit(net() if model is None else model, loader(4, 24) if data is None else data, ckpt_path=start)
    return updater


def refused(words, algorithm, *args, error=(ValueError, MisconfigurationException), **settings):
    with pytest.raises(error) as found:
        fit(algorithm, *args, **settings)
    assert [word for word in words if word not in str(found.value)] == [], str(found.value)


class Manual(ByHand, Net): ...


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=2)])
def test_manual_optimization_is_refused_where_a_loss_is_asked_for(algorithm):
    model = Manual()
    before = weights(model)
    refused([type(algorithm).__name__, "manual optimization", "SynFlow"], algorithm, model)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_manual_optimization_is_fine_with_synflow():
    assert fit(SynFlow(2), Manual()).density() == 0.25


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=2), SynFlow(2)])
def test_data_that_can_be_read_once_only_is_refused(algorithm):
    refused(["generator", "read once", "DataLoader"], algorithm, data=(row for row in list(loader(4, 24))))


def test_data_that_can_be_read_once_only_is_fine_where_an_example_says_the_shape():
    model = net()
    model.example_input_array = torch.zeros(1, 2, 6, 6)
    assert fit(SynFlow(2), model, data=(row for row in list(loader(4, 24)))).density() == 0.25


class Nothing(IterableDataset):
    """Empty the first time it is copied and read, as a loader that filters everything out."""

    def __iter__(self):
        yield from ()


@pytest.mark.parametrize("algorithm", [SNIP(), GraSP(samples=None)])
def test_a_loader_without_a_batch_is_refused(algorithm):
    data = {"a": loader(4, 24), "b": DataLoader(Nothing(), batch_size=4)}

    class Both(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    from lightning.pytorch.utilities import CombinedLoader

    words = ["empty"] if isinstance(algorithm, SNIP) else ["the loader has 0"]
    refused(words, algorithm, Both(), data=CombinedLoader(data, "max_size"))


def test_a_class_that_the_loader_lacks_is_named():
    x, y = samples(24).tensors
    rows = DataLoader(torch.utils.data.TensorDataset(x, y % 4), batch_size=4)  # the head has five
    refused(["4 samples of each of 5", "{4: 0}", "samples=None"], GraSP(samples=4), data=rows)


class Returns(Net):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def training_step(self, batch, batch_idx):
        return self.what(super().training_step(batch, batch_idx))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda loss: None, ["training_step", "NoneType"]),
        (lambda loss: {"cost": loss}, ["training_step", "dict"]),
        (lambda loss: loss.detach(), ["differentiated"]),
        (lambda loss: torch.stack([loss, loss]), ["scalar"]),
    ],
)
def test_a_step_without_a_loss_is_refused(what, words):
    refused(words, SNIP(), Returns(what))


def test_a_model_that_cannot_be_copied_is_refused():
    model = net()
    model.lock = threading.Lock()
    refused(["cannot be copied", "lock", "__deepcopy__"], SNIP(), model)


class Locked(IterableDataset):
    def __init__(self):
        self.lock = threading.Lock()

    def __iter__(self):
        yield from samples(24)


def test_a_stream_that_cannot_be_copied_is_refused():
    refused(["Locked", "cannot be copied", "disturb"], SNIP(), data=DataLoader(Locked(), batch_size=4))


def test_synflow_warns_of_layer_norm_by_name():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.net.insert(5, nn.LayerNorm(20))

    with pytest.warns(UserWarning, match=r"net\.5; SNIP or GraSP"):
        fit(SynFlow(2), Normed())


class Counted(Dataset):
    reads = 0

    def __len__(self):
        return 24

    def __getitem__(self, i):
        Counted.reads += 1
        return samples(24)[i]


@pytest.mark.parametrize("algorithm", [SNIP(), SynFlow(2)])
def test_a_resumed_run_does_not_look_again(tmp_path, algorithm):
    fit(algorithm, data=DataLoader(Counted(), batch_size=4), callbacks=[saver(tmp_path, 6)])
    Counted.reads = 0
    path = tmp_path / "step=6.ckpt"
    fit(algorithm, data=DataLoader(Counted(), batch_size=4), start=path, max_steps=12)
    assert Counted.reads == 24


# ---- Going back


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """After two and six steps of runs that keep nothing to go back to."""
    folder = tmp_path_factory.mktemp("others")
    kinds = {"gmp": GMP(every=2, stop=6), "static": Static(), "rigl": RigL(every=2), "plain": GlobalMagnitude(stop=5)}
    for name, algorithm in kinds.items():
        fit(algorithm, data=stateful(4, 24), callbacks=[saver(folder / name, 2)])
    trainer([saver(folder / "dense", 2)], max_steps=6, enable_checkpointing=True).fit(net(), stateful(4, 24))
    return folder


WAY_OUT = ["start the run anew", "rewind=None"]


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("dense", 2, ["rewinds to an early state", "step 2", *WAY_OUT]),
        ("plain", 2, ["rewinds to step 0", "does not hold", *WAY_OUT]),
        ("plain", 6, ["rewinds to step 0", "does not hold", *WAY_OUT]),
        ("gmp", 2, ["GMP was on its way"]),
        ("static", 2, ["rewinds to step 0", *WAY_OUT]),
        ("rigl", 6, ["rewinds to step 0", *WAY_OUT]),
    ],
)
def test_going_back_from_a_checkpoint_that_holds_no_start_is_refused(checkpoints, name, step, words):
    algorithm = GlobalMagnitude(stop=8, rewind="init")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*goes on with them.*")
        path = checkpoints / name / f"step={step}.ckpt"
        refused(words, algorithm, data=stateful(4, 24), start=path, max_steps=12)


def test_going_back_to_a_step_that_is_still_to_come_is_fine(checkpoints):
    algorithm = GlobalMagnitude(stop=5, rewind=3)
    found = fit(algorithm, data=stateful(4, 24), start=checkpoints / "plain" / "step=2.ckpt")
    assert found.sparsifier.rewinds == 1


@pytest.fixture(scope="module")
def rewinding(tmp_path_factory):
    """After four steps of a run that goes back to the second."""
    folder = tmp_path_factory.mktemp("rewinding")
    fit(GlobalMagnitude(stop=5, rewind=2), data=stateful(4, 24), callbacks=[saver(folder, 4)])
    return folder / "step=4.ckpt"


@pytest.mark.parametrize(("rewind", "step"), [(3, 3), (1, 1), ("init", 0), (4, 4)])
def test_going_back_to_another_step_than_the_saved_one_is_refused(rewinding, rewind, step):
    words = [f"step {step}", "those of step 2", *WAY_OUT]
    refused(words, GlobalMagnitude(stop=6, rewind=rewind), data=stateful(4, 24), start=rewinding)


def test_another_step_that_is_still_to_come_is_gone_back_to(rewinding):
    seen = {}

    class Pages(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[trainer.global_step] = weights(pl_module)

    updater = fit(
        GlobalMagnitude(stop=7, rewind=5), data=stateful(4, 24), start=rewinding, callbacks=[Pages()], max_steps=8
    )
    assert updater.sparsifier.rewinds == 1
    assert all(torch.equal(value, seen[5][name] * updater.masks.get(name, 1)) for name, value in seen[7].items())


def test_a_resumed_run_need_not_go_back(rewinding):
    found = fit(GlobalMagnitude(stop=5), data=stateful(4, 24), start=rewinding)
    assert (found.density(), found.sparsifier.rewinds) == (0.25, 0)
    assert found.state_dict()["rewinder"]["saved"] == {}


def test_going_back_to_after_the_first_pruning_is_refused_before_training():
    refused(["rewind=4", "first pruning at step 3"], GlobalMagnitude(rounds=2, stop=6, rewind=4))
