"""Channels out of two networks while they train, on real MNIST.

    python examples/channels.py
    python examples/channels.py --data fashion_mnist.npz --epochs 12 --limit 0

A small VGG and a small ResNet lose channels twice, after a third and after half of the epochs; what is left goes
on at once, with the same optimizer. Beside each: the dense run, and the final widths trained from scratch for as many
epochs. Prints accuracy, channels, parameters, FLOPs and seconds, and the channels of each layer over the epochs. Takes
about a minute on two cores; every number is of this run. Networks as small as these are bound by overhead: their
seconds fall less than their FLOPs.
"""

import argparse
import copy
import logging
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from mnist import DATA, MNIST, ConvNet
from torch import nn

from lightning_sparse import BNChannelPruner


def train(model: ConvNet, args: argparse.Namespace, *callbacks: BNChannelPruner) -> tuple[float, float]:
    """Accuracy, and seconds of the fit."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        check_val_every_n_epoch=args.epochs,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    start = time.perf_counter()
    trainer.fit(model, datamodule=MNIST(args.data, limit=args.limit))
    return float(trainer.callback_metrics["accuracy"]), time.perf_counter() - start


def anew(model: ConvNet) -> ConvNet:
    """The same widths, with weights that have not seen anything."""
    fresh = copy.deepcopy(model)
    for module in fresh.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return fresh


def picture(pruner: BNChannelPruner, epochs: int) -> list[str]:
    """A line for each axis: its channels in each epoch."""
    lines = []
    for name, (_, first) in pruner.channels().items():
        widths, cuts = [first] * epochs, pruner.history.cuts
        for cut in cuts:
            widths[cut.epoch :] = [cut.channels[name][1]] * (epochs - cut.epoch)
        lines.append(f"  {name:<18}" + "".join(f"{width:>5}" for width in widths))
    return lines


def compare(kind: str, args: argparse.Namespace) -> list[list[str]]:
    torch.manual_seed(0)
    dense = ConvNet(kind)
    size = sum(p.numel() for p in dense.parameters())
    pruner = BNChannelPruner(args.keep, at=[1 / 3, 1 / 2], l1=args.l1, round_to=4, min_channels=8)
    small = copy.deepcopy(dense)
    accuracy, seconds = train(dense, args)
    rows = [[kind, "dense", f"{accuracy:.2%}", "100%", f"{size:,}", "100%", f"{seconds:.0f}"]]
    accuracy, seconds = train(small, args, pruner)
    share, flops = f"{pruner.history.share():.0%}", f"{pruner.history.flops_share():.0%}"
    size = sum(p.numel() for p in small.parameters())
    rows.append([kind, "pruned", f"{accuracy:.2%}", share, f"{size:,}", flops, f"{seconds:.0f}"])
    accuracy, seconds = train(anew(small), args)
    rows.append([kind, "from scratch", f"{accuracy:.2%}", share, f"{size:,}", flops, f"{seconds:.0f}"])
    print(f"\n{kind}: channels in epochs 1 to {args.epochs}", *picture(pruner, args.epochs), sep="\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="an .npz like MNIST's")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--l1", type=float, default=1e-3, help="strength of the penalty on gammas")
    parser.add_argument("--limit", type=int, default=6000, help="train on that many images only; 0: all")
    parser.add_argument("--fast", action="store_true", help="three epochs on 1,000 images: only shows that it runs")
    args = parser.parse_args()
    if args.fast:
        args.epochs, args.limit = 3, 1000
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval).*")
    rows = [["", "", "accuracy", "channels", "parameters", "FLOPs", "seconds"]]
    rows += [row for kind in ("vgg", "resnet") for row in compare(kind, args)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{Path(args.data).stem}, {args.epochs} epochs, seed 0")
    for row in rows:
        print(
            "  ".join(
                cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


if __name__ == "__main__":
    main()
