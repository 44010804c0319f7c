"""Sparse training on real MNIST: five ways, one table.

    make demo                          # or: python examples/mnist_rigl.py
    python examples/mnist_rigl.py --data fashion_mnist.npz --epochs 10

Trains LeNet-300-100 dense, and at 5 % density static, by SET, by RigL and by Sparse Momentum, then prints accuracy,
density, live weights, training FLOPs and seconds side by side. Takes about two minutes on two cores; every number is of
this run. A sparse layer is still multiplied with its zeros, so seconds do not fall with FLOPs yet.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from mnist import DATA, MNIST, LeNet

from lightning_sparse import DensityLogger, MaskUpdater

WAYS = ["dense", "static", "set", "rigl", "sparse_momentum"]


def train(way: str, args: argparse.Namespace) -> list[str]:
    seed_everything(0, verbose=False)
    updater = MaskUpdater("static" if way == "dense" else way, density=1.0 if way == "dense" else args.density)
    watch = DensityLogger(images=True, layout=True)
    model = LeNet()
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(args.logs, name=way, version=""),
        callbacks=[updater, watch],
        check_val_every_n_epoch=args.epochs,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=100,
    )
    print(f"\n{way}")
    start = time.perf_counter()
    trainer.fit(model, datamodule=MNIST(args.data, limit=args.limit))
    seconds = time.perf_counter() - start
    live = sum(int(mask.sum()) for mask in updater.masks.values())
    accuracy, flops = float(trainer.callback_metrics["accuracy"]), watch.watch.health()["masks/training_flops_share"]
    return [way, f"{accuracy:.2%}", f"{updater.density():.2%}", f"{live:,}", f"{flops:.1%}", f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="an .npz like MNIST's")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--logs", default=str(Path("logs") / "mnist_rigl"))
    parser.add_argument("--limit", type=int, default=0, help="train on that many images only")
    parser.add_argument("--fast", action="store_true", help="one epoch on 6,000 images: only shows that it runs")
    args = parser.parse_args()
    if args.fast:
        args.epochs, args.limit = 1, 6000
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)  # the progress bar says enough
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval).*")
    rows = [["", "accuracy", "density", "live weights", "training FLOPs", "seconds"]]
    rows += [train(way, args) for way in WAYS]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\nLeNet-300-100, {Path(args.data).stem}, {args.epochs} epochs, seed 0; FLOPs against the dense run")
    for row in rows:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print(f"\nWatch the runs: tensorboard --logdir {args.logs}")


if __name__ == "__main__":
    main()
