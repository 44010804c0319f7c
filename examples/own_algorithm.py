"""A drop-and-grow rule of your own in ten lines, against RigL on real MNIST.

    python examples/own_algorithm.py

Drops the weights that matter least to first order, |w * g|, and grows where the gradient is largest. Prints the test
accuracy of both after three epochs at 2 % density.
"""

import argparse
import logging
import warnings
from dataclasses import dataclass

from lightning.pytorch import Trainer, seed_everything
from mnist import MNIST, LeNet
from torch import Tensor

from lightning_sparse import DropGrow, MaskUpdater, RigL, SparseParam


@dataclass(frozen=True)
class Saliency(DropGrow):
    """Drop what matters least to first order, grow where the gradient is largest."""

    def drop_score(self, p: SparseParam) -> Tensor:
        return (p.weight * p.grad).abs()

    def grow_score(self, p: SparseParam) -> Tensor:
        return p.grad.abs()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="one epoch on 6,000 images")
    fast = parser.parse_args().fast
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval).*")
    for algorithm in (Saliency(every=50), RigL(every=50)):
        seed_everything(0, verbose=False)
        trainer = Trainer(
            max_epochs=1 if fast else 3,
            accelerator="cpu",
            callbacks=[MaskUpdater(algorithm, density=0.02)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(LeNet(), datamodule=MNIST(limit=6000 if fast else 0))
        print(f"{type(algorithm).__name__:10} {float(trainer.callback_metrics['accuracy']):.2%}")


if __name__ == "__main__":
    main()
