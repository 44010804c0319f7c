"""Moving averages of a model whose layers are without zeros are those of a model with dense layers."""

import pytest
import torch
from computed import Recorder
from helpers import DENSITY, loader, net, saver, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from lightning_sparse import GMP, MaskUpdater, RigL
from lightning_sparse.compute import SparseLayer

ALGORITHMS = {"rigl": RigL(every=3, stop=1.0), "gmp": GMP(every=3, stop=30)}
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Validated(Callback):
    """The weights of each validation, where averages are swapped in, and how many numbers averages have."""

    def __init__(self, average):
        self.average, self.found, self.sizes, self.sparse = average, [], [], 0

    def on_validation_end(self, trainer, pl_module):
        self.found.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        model = self.average._average_model
        self.sizes.append(sum(p.numel() for p in model.parameters()))
        self.sparse += sum(isinstance(module, SparseLayer) for module in model.modules())


def average(kind):
    if kind == "swa":
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    return EMAWeightAveraging(decay=0.7, **({"update_starting_at_step": 20} if kind == "late ema" else {}))


def run(name, kind, compute, first, tmp_path):
    updater, model, mean = MaskUpdater(ALGORITHMS[name], DENSITY, compute=compute), net("adamw").double(), average(kind)
    recorder, validated = Recorder(updater), Validated(mean)
    pair = [mean, updater] if first == "average first" else [updater, mean]
    fit = trainer(
        [*pair, recorder, validated, saver(tmp_path / compute, 24)],
        max_epochs=4, precision="64-true", enable_checkpointing=True,
    )  # fmt: skip
    fit.fit(model, loader(), loader(8, 16))
    saved = torch.load(tmp_path / compute / "step=24.ckpt", weights_only=True)
    return recorder, validated, weights(model), saved


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler.*", "ignore:.*swa_model.*")
@pytest.mark.parametrize("first", ["average first", "masks first"])
@pytest.mark.parametrize("kind", ["ema", "late ema", "swa"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_averages_are_those_of_dense_layers(name, kind, first, tmp_path):
    sparse, dense = (run(name, kind, compute, first, tmp_path) for compute in ("sparse", "dense"))
    assert sparse[0].masks == dense[0].masks
    assert dense[0].moves >= 3
    assert sparse[1].sparse == 3 * 48
    assert dense[1].sparse == 0
    assert sparse[1].sizes[-1] == 532 + 31
    torch.testing.assert_close(sparse[1].found[1:], dense[1].found[1:], **CLOSE)  # the first is the sanity check
    torch.testing.assert_close(sparse[2], dense[2], **CLOSE)
    for part in ("state_dict", "current_model_state"):
        assert (part in sparse[3]) == (part in dense[3])
        torch.testing.assert_close(sparse[3].get(part, {}), dense[3].get(part, {}), **CLOSE)
