"""Moving averages of the model stay as sparse as the model."""

import pytest
import torch
from helpers import DENSITY, Recorder, loader, net, same, saver, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from lightning_sparse import GMP, SET, MaskUpdater, RigL, Static

ALGORITHMS = {
    "static": Static(),
    "rigl": RigL(every=3, stop=1.0),
    "set": SET(every=3, stop=1.0),
    "gmp": GMP(every=3, stop=12),
}


def leaks(model, masks) -> int:
    return sum(int(model.state_dict()[name][~mask].count_nonzero()) for name, mask in masks.items())


class Validated(Callback):
    """Dead weights that were not zero in a validation, where the averaged weights are swapped in."""

    def __init__(self, updater):
        self.updater, self.found = updater, []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:  # that comes before there are masks
            self.found.append(leaks(pl_module, self.updater.masks))


def average(kind):
    if kind == "swa":
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    return EMAWeightAveraging(decay=0.7, **({"update_starting_at_step": 20} if kind == "late ema" else {}))


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler.*", "ignore:.*swa_model.*")
@pytest.mark.parametrize("first", ["average first", "masks first"])
@pytest.mark.parametrize("kind", ["ema", "late ema", "swa"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_average_is_sparse_in_validation_and_at_the_end(name, kind, first):
    updater, model = MaskUpdater(ALGORITHMS[name], DENSITY), net()
    recorder, validated = Recorder(updater), Validated(updater)
    pair = [average(kind), updater]
    callbacks = pair if first == "average first" else pair[::-1]
    trainer([*callbacks, recorder, validated], max_epochs=4).fit(model, loader(), loader(8, 16))
    assert len(validated.found) == 8
    assert set(validated.found) == {0}
    assert recorder.leaks == 0
    assert recorder.moves >= (0 if name == "static" else 3)
    assert leaks(model, updater.masks) == 0
    assert bool(model.net[4].weight[updater.masks["net.4.weight"]].any())


def test_a_checkpoint_of_the_average_is_sparse(tmp_path):
    updater = MaskUpdater(ALGORITHMS["rigl"], DENSITY)
    keep = saver(tmp_path, 4)
    trainer([average("ema"), updater, keep], max_epochs=1, enable_checkpointing=True).fit(net(), loader())
    stored = torch.load(tmp_path / "step=12.ckpt", weights_only=True)
    assert "current_model_state" in stored
    for part in ("state_dict", "current_model_state"):
        found = [stored[part].get(name, stored[part].get(f"module.{name}")) for name in updater.masks]
        assert [int(w[~m].count_nonzero()) for w, m in zip(found, updater.masks.values(), strict=True)] == [0, 0, 0]


def test_a_resumed_average_ends_as_the_uninterrupted_one(tmp_path):
    ends = []
    for start, seed in ((None, 1), (tmp_path / "step=8.ckpt", 5)):
        updater, model = MaskUpdater(ALGORITHMS["rigl"], DENSITY), net("adamw", 0.25, seed=seed)
        fit = trainer([updater, average("ema"), saver(tmp_path, 4)], max_epochs=2, enable_checkpointing=True)
        fit.fit(model, stateful(shuffle=True), ckpt_path=start)
        ends.append((updater.masks, weights(model)))
    assert all(same(left, right) for left, right in zip(*ends, strict=True))
