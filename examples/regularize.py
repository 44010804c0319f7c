"""L1, weight decay and masks together, on real MNIST.

    python examples/regularize.py

Trains LeNet-300-100 seven ways, always with the weight decay of its own optimizer, and prints accuracy beside what
became of the weights: how many are exactly zero, how many are smaller than 0.001, and how many of the 1,184 inputs of
layers are still read. A gradient of L1 makes weights small and none of them zero; the proximal operator makes exact
zeros; group lasso on inputs switches off whole pixels and neurons; masks fix the number of zeros, and a penalty goes on
among the live ones. Momentum adds up gradients and not what the proximal operator takes away, so proximal strengths are
ten times as large here: 1 / (1 - 0.9). Takes about a minute on two cores.
"""

import argparse
import logging
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from mnist import MNIST, LeNet

from lightning_sparse import LinearSchedule, MaskUpdater, Regularizer, RigL
from lightning_sparse.penalties import GroupLasso


def ways() -> dict[str, list[Callback]]:
    masks = {"algorithm": RigL(every=20), "density": 0.1}
    return {
        "weight decay alone": [],
        "L1": [Regularizer("l1", 2e-4)],
        "L1, proximal": [Regularizer("l1", 2e-3, proximal=True)],
        "L1, proximal, strength growing": [Regularizer("l1", LinearSchedule(0.0, 4e-3), proximal=True)],
        "group lasso on inputs, proximal": [Regularizer(GroupLasso("inputs"), 2e-3, proximal=True)],
        "masks": [MaskUpdater(**masks)],
        "masks, L1, proximal": [MaskUpdater(**masks), Regularizer("l1", 5e-4, proximal=True)],
    }


def train(callbacks: list[Callback], args: argparse.Namespace) -> list[str]:
    seed_everything(0, verbose=False)
    model = LeNet()
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        check_val_every_n_epoch=args.epochs,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=MNIST(limit=args.limit))
    matrices = [weight.detach() for weight in model.parameters() if weight.ndim == 2]
    weights = torch.cat([weight.flatten() for weight in matrices])
    read = sum(int(weight.any(dim=0).sum()) for weight in matrices)
    shares = [float((weights == 0).float().mean()), float((weights.abs() < 1e-3).float().mean())]
    return [f"{float(trainer.callback_metrics['accuracy']):.2%}", *(f"{share:.1%}" for share in shares), f"{read:,}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="train on that many images only")
    parser.add_argument("--fast", action="store_true", help="one epoch on 6,000 images: only shows that it runs")
    args = parser.parse_args()
    if args.fast:
        args.epochs, args.limit = 1, 6000
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    print(f"LeNet-300-100, MNIST, {args.epochs} epochs, seed 0; SGD with weight_decay=5e-4")
    print(f"{'':32}{'accuracy':>10}{'zero':>9}{'< 0.001':>9}{'inputs read':>13}")
    for way, callbacks in ways().items():
        accuracy, zero, small, read = train(callbacks, args)
        print(f"{way:32}{accuracy:>10}{zero:>9}{small:>9}{read:>13}", flush=True)


if __name__ == "__main__":
    main()
