"""Tables: the Temporal Fusion Transformer of pytorch-forecasting, SCVI of scvi-tools."""

from pathlib import Path

import torch
from helpers import QUIET
from lightning.pytorch import Callback
from modules.subject import EPOCHS, STEPS, Subject, numbers


def tft():
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.metrics import QuantileLoss

    def table():
        waves = [torch.sin(torch.arange(30) / (2 + k)) + 0.1 * torch.randn(30, generator=numbers(k)) for k in range(4)]
        rows = [(str(k), t, float(value)) for k, wave in enumerate(waves) for t, value in enumerate(wave)]
        return TimeSeriesDataSet(
            pd.DataFrame(rows, columns=["series", "t", "value"]),
            time_idx="t",
            target="value",
            group_ids=["series"],
            max_encoder_length=8,
            max_prediction_length=4,
            static_categoricals=["series"],
            time_varying_known_reals=["t"],
            time_varying_unknown_reals=["value"],
        )

    def make():
        small = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "dropout": 0.1}
        small |= {"optimizer": "adam", "learning_rate": 0.01, "log_interval": -1}
        return TemporalFusionTransformer.from_dataset(table(), loss=QuantileLoss(), **small)

    def loader(train):
        return table().to_dataloader(train=train, batch_size=len(table()) // STEPS, num_workers=0)

    return Subject(make, lambda: loader(True), lambda model: model(next(iter(loader(False)))[0])["prediction"])


class Keeper(Callback):
    """Writes ``step=n.ckpt`` at the end of every second epoch: scvi-tools takes no ModelCheckpoint but its own."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % (2 * STEPS) == 0:
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def scvi():
    import anndata
    import numpy as np
    from scvi.model import SCVI
    from scvi.train import TrainingPlan

    def make():
        counts = torch.poisson(5 * torch.rand(16 * STEPS, 40, generator=numbers()), generator=numbers())
        cells = anndata.AnnData(counts.numpy().astype(np.float32))
        SCVI.setup_anndata(cells)
        return SCVI(cells, n_hidden=32, n_latent=4)

    def fit(made, callbacks, start):
        *others, saver = callbacks
        data = {"max_epochs": EPOCHS, "batch_size": 16, "train_size": 1.0}
        data["shuffle_set_split"] = False  # else every process deals out the cells in another random order
        made.train(callbacks=[*others, Keeper(Path(saver.dirpath))], ckpt_path=start, **data, **QUIET)
        return made.trainer

    def answers(plan):
        inputs = {"x": torch.arange(80.0).view(2, 40), "batch_index": torch.zeros(2, 1)}
        return plan.module.inference(**inputs)["qz"].loc

    return Subject(make, lambda: None, answers, module=lambda made: TrainingPlan(made.module), fit=fit)
