"""Layers that hold and compute only their live weights, beside dense and masked ones, on real MNIST.

    python examples/compute.py

An MLP 784-1024-1024-10 with 5 % of its weights, trained by RigL. Prints test accuracy, seconds of the fit, and the
megabytes of parameters and optimizer state in its last step. The model that comes out is the same plain one either way.
The first run compiles the kernels (ten seconds, with g++ or clang++); without a compiler torch computes, slower.
"""

import argparse
import logging
import time
import warnings

from lightning.pytorch import Callback, Trainer, seed_everything
from mnist import MNIST, LeNet
from torch import Tensor, nn

from lightning_sparse import MaskUpdater, RigL


class Wide(LeNet):
    """1.9 million weights."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        sizes = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
        self.net = nn.Sequential(nn.Flatten(), *sizes)


class Bytes(Callback):
    """What parameters and optimizer state take in the last step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: nn.Module, *rest: object) -> None:
        if trainer.global_step == trainer.estimated_stepping_batches:
            state = [value for row in trainer.optimizers[0].state.values() for value in row.values()]
            tensors = [*pl_module.parameters(), *(value for value in state if isinstance(value, Tensor))]
            self.megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="one epoch on 6,000 images")
    fast = parser.parse_args().fast
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval).*")
    print(f"{'':8} {'accuracy':>8} {'seconds':>8} {'megabytes':>10}")
    for name in ("dense", "masked", "sparse"):
        seed_everything(0, verbose=False)
        rule, compute = RigL(every=10 if fast else 100), "sparse" if name == "sparse" else "dense"
        sparse = [] if name == "dense" else [MaskUpdater(rule, density=0.05, compute=compute)]
        trainer = Trainer(
            max_epochs=1 if fast else 3,
            accelerator="cpu",
            callbacks=[*sparse, size := Bytes()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        trainer.fit(Wide(), datamodule=MNIST(limit=6000 if fast else 0))
        seconds, accuracy = time.perf_counter() - start, float(trainer.callback_metrics["accuracy"])
        print(f"{name:8} {accuracy:8.2%} {seconds:8.1f} {size.megabytes:10.1f}", flush=True)


if __name__ == "__main__":
    main()
