"""Make a trained dense model sparse: keep its largest weights, fine-tune, save a plain checkpoint.

    python examples/fine_tune.py

Trains LeNet-300-100 dense on real MNIST for three epochs, keeps the largest 5 % of its weights over all layers, and
fine-tunes for two epochs. Prints the accuracy of each stage, and loads the result without this package.
"""

import argparse
import logging
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from mnist import MNIST, LeNet

from lightning_sparse import MaskUpdater


def accuracy(model: LeNet, data: MNIST) -> float:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    return trainer.test(model, data, verbose=False)[0]["accuracy"]


def fit(model: LeNet, data: MNIST, epochs: int, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="train on 6,000 images only")
    fast = parser.parse_args().fast
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    seed_everything(0, verbose=False)
    data, model = MNIST(limit=6000 if fast else 0), LeNet()
    fit(model, data, 3)
    print(f"dense         {accuracy(model, data):.2%}")

    model.lr = 0.02
    updater = MaskUpdater("rigl", density=0.05, init="magnitude", allocation="global")
    trainer = fit(model, data, 2, updater)
    print(f"fine-tuned    {accuracy(model, data):.2%} at density {updater.density():.2%}")

    trainer.save_checkpoint("fine_tuned.ckpt", weights_only=True)
    plain = LeNet.load_from_checkpoint("fine_tuned.ckpt")  # nothing of lightning_sparse is needed here
    zeros = sum(int((w == 0).sum()) for w in plain.parameters() if w.ndim > 1)
    print(f"loaded plain  {accuracy(plain, data):.2%} with {zeros:,} zero weights of {266_200:,}")
    assert torch.equal(plain.net[1].weight, model.net[1].weight)


if __name__ == "__main__":
    main()
