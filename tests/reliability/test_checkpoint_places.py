"""Failure modes 39 to 45: checkpoints of other runs, after errors, of several callbacks; what they weigh."""

import pytest
import torch
from helpers import DENSITY, LIVE, SIZES, TOTAL, Net, loader, net, same, saver, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from modes import mode
from runs import MOVING, hooks, leaks, run
from torch import Tensor, nn

from lightning_sparse import MaskUpdater, SparseMomentum, Static

KEEPING = {"enable_checkpointing": True}
STATE = "lightning_sparse.MaskUpdater"


@mode(39, "a dense checkpoint", right="its largest weights stay live, and a message says so")
def test_a_dense_checkpoint_starts_by_magnitude(tmp_path, caplog):
    trainer([saver(tmp_path, 12)], max_epochs=1, **KEEPING).fit(net(), loader())
    dense = torch.load(tmp_path / "step=12.ckpt", weights_only=True)["state_dict"]
    with caplog.at_level("INFO"):
        fit = run(
            Static(), "sgd", saver(tmp_path, 12), start=tmp_path / "step=12.ckpt", max_epochs=2, **KEEPING
        )
    for name, k in LIVE.items():
        least = dense[name].abs().flatten().sort(descending=True).values[k - 1]
        assert torch.equal(fit.updater.masks[name], dense[name].abs() >= least)
    assert "the largest of its weights stay live" in caplog.text


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.net[6] = nn.Linear(20, 6)


@mode(39)
@pytest.mark.parametrize(
    ("model", "density", "error", "words"),
    [(net, 0.5, ValueError, "budget of 48 live"), (Wider, DENSITY, RuntimeError, "size mismatch for net.6.weight")],
    ids=["other density", "other model"],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(model, density, error, words, tmp_path):
    run(Static(), "sgd", saver(tmp_path, 6), **KEEPING)
    start = tmp_path / "step=6.ckpt"
    with pytest.raises(error, match=words):
        run(Static(), "", saver(tmp_path, 6), model=model(), masks={"density": density}, start=start, **KEEPING)


@mode(40, "checkpoints of compiled and plain models", right="each goes on from the other's, under the same names")
@pytest.mark.parametrize("first", ["plain", "compiled"])
def test_a_compiled_and_a_plain_model_share_checkpoints(first, tmp_path):
    def fitted(folder, seed, compiled, start=None):
        updater, model = MaskUpdater(MOVING, DENSITY), net(seed=seed)
        fit = trainer([updater, saver(folder, 6)], max_epochs=1, **KEEPING)
        given = torch.compile(model, backend="eager") if compiled else model
        fit.fit(given, stateful(), ckpt_path=start)
        return updater.masks, weights(model)

    folder = tmp_path / first
    whole = fitted(tmp_path / "whole", 1, compiled=False)
    fitted(folder, 1, compiled=first == "compiled")
    again = fitted(folder, 5, compiled=first == "plain", start=folder / "step=6.ckpt")
    assert again[0].keys() == LIVE.keys()
    assert all(same(left, right) for left, right in zip(again, whole, strict=True))


@mode(40)
def test_a_compiled_part_of_a_model_has_plain_names():
    updater, model = MaskUpdater(MOVING, DENSITY), net()
    model.net = torch.compile(model.net, backend="eager")
    trainer([updater], max_epochs=1, limit_train_batches=4).fit(model, loader())
    assert updater.state_dict()["params"].keys() == LIVE.keys()


@mode(
    41,
    "`test(ckpt_path=...)` and `validate(ckpt_path=...)` with the callback, and a fit after them",
    right="they change nothing; the fit goes on with the masks of the weights that were loaded",
)
@pytest.mark.parametrize("method", ["validate", "test"])
def test_looking_at_a_checkpoint_changes_nothing(method, tmp_path):
    start = tmp_path / "step=6.ckpt"
    run(Static(), "sgd", saver(tmp_path, 6), masks={"seed": 3}, **KEEPING)
    saved = torch.load(start, weights_only=True)["state_dict"]
    updater, model = MaskUpdater(Static(), DENSITY), net(seed=5)
    fit = trainer([updater, saver(tmp_path, 6)], max_epochs=1, **KEEPING)
    getattr(fit, method)(model, loader(8, 16), ckpt_path=start, verbose=False)
    assert same(weights(model), saved)
    fit.fit(model, loader())
    assert same(updater.masks, {name: saved[name] != 0 for name in LIVE})
    assert leaks(model, updater.masks) == 0


class Breaks(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 6:
            raise self.error


@mode(42, "errors, Ctrl-C and OnExceptionCheckpoint", right="hooks are let go, and what is saved is sparse")
@pytest.mark.filterwarnings("ignore:.*without a model.*", "ignore:.*no last checkpoint.*")
@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("on purpose"), RuntimeError), (KeyboardInterrupt(), SystemExit)], ids=str
)
def test_after_an_error_hooks_are_gone_and_the_checkpoint_is_sparse(error, raised, tmp_path):
    updater, model = MaskUpdater(MOVING, DENSITY), net()
    keep = OnExceptionCheckpoint(tmp_path, "broken")
    fit = trainer([updater, Breaks(error), keep], max_epochs=1, **KEEPING)
    with pytest.raises(raised):
        fit.fit(model, loader())
    assert hooks(fit.optimizers[0]) == 0
    found = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    model.load_state_dict(found["state_dict"])
    assert leaks(model, updater.masks) == 0
    assert found["callbacks"][STATE]["updates"] == 3  # after steps 2, 4 and 6; the seventh never came
    assert {name: row["live"] for name, row in found["callbacks"][STATE]["params"].items()} == LIVE


def tensors(state) -> list[Tensor]:
    """Every tensor in nested containers."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@mode(
    43,
    "masks blow up checkpoints",
    right="a bit a weight; no tensor brings the storage of a larger one along",
)
@pytest.mark.parametrize("algorithm", [MOVING, SparseMomentum(every=2)], ids=["masks only", "with an average"])
def test_masks_take_a_bit_a_weight(algorithm):
    state = run(algorithm).updater.state_dict()
    masks = [row["mask"] for row in state["params"].values()]
    assert sum(mask.untyped_storage().nbytes() for mask in masks) == sum(-(-size // 8) for size in SIZES.values())
    found = tensors(state["params"])
    assert len(found) == len(masks) * (1 if algorithm is MOVING else 2)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in found)


@mode(
    44,
    "two callbacks in one Trainer",
    right="refused under one name; else each keeps weights and state of its own",
)
def test_two_callbacks_train_and_resume_together(tmp_path):
    def both():
        first = MaskUpdater(MOVING, 0.1, include=["net.4"], name="a")
        return [first, MaskUpdater(Static(), 0.5, exclude=["net.4"], name="b")]

    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=6.ckpt", 5)):
        pair, model = both(), net(seed=seed)
        trainer([*pair, saver(tmp_path, 6)], max_epochs=1, **KEEPING).fit(model, stateful(), ckpt_path=start)
        assert [updater.density() for updater in pair] == [192 / 1920, 104 / 208]
        ends.append(({**pair[0].masks, **pair[1].masks}, weights(model)))
    assert all(same(left, right) for left, right in zip(*ends, strict=True))
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer([MaskUpdater("rigl"), MaskUpdater("set")])


@mode(
    45,
    "modules or parameters are replaced inside a Trainer, so that checkpoints do not load any more",
    right="modules, parameters and names are those of before; every checkpoint loads",
)
def test_the_structure_of_a_model_never_changes(tmp_path):
    model = net("adamw")

    def parts():
        return [*map(id, model.modules()), *map(id, model.parameters()), *model.state_dict()]

    class Look(Callback):
        def on_train_batch_end(self, *_):
            seen.append(parts())

    seen, before = [], parts()
    run(MOVING, "", saver(tmp_path, 4), Look(), model=model, **KEEPING)
    assert [now == before for now in (*seen, parts())] == [True] * 13
    for step in (4, 8, 12):
        found = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        Net().load_state_dict(found, strict=True)
        assert sum(int(found[name].count_nonzero()) for name in LIVE) <= TOTAL
