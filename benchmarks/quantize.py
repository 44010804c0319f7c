"""What quantization costs sparse networks in accuracy, on Fashion-MNIST: int8, 4 bits, a budget.

    python benchmarks/quantize.py --data fashion_mnist.npz [--seeds 0 1]    # runs what is missing, prints the table
    python benchmarks/quantize.py --table                                   # only the table of what has run

LeNet-300-100 at 5 % density and the convolutional network of fashion.py (BatchNorm) at 10 %: RigL, then each way goes
on from the same weights for the same epochs with its masks fixed, with quantization or without. Each finished way is
one line of results/quantize.jsonl. int8 is calibrated at the end: its float weights are those of the float way.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import mean

import torch
from fashion import load, network
from lightning.pytorch import LightningModule, Trainer, seed_everything
from record import Row, read, versions
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_sparse import MaskUpdater, QuantizeSparse, RigL
from lightning_sparse.quant.quantization import Quantization

RESULTS = Path(__file__).parent / "results" / "quantize.jsonl"
NETS = {"lenet": (0.05, 8, 2), "cnn": (0.10, 4, 2)}  # density, epochs of RigL, epochs that each way goes on
WAYS = {
    "sparse": "float32",
    "int8": "int8 by calibration, 8-bit activations",
    "int4": "4 bits, trained quantized, 8-bit activations",
    "auto": "2.8 bits on average, by layer, trained quantized",
}
TITLES = {"lenet": "LeNet-300-100, 5 %", "cnn": "convolutional, BatchNorm, 10 %"}


class Classifier(LightningModule):
    """One of the two networks, trained by SGD on a cosine."""

    def __init__(self, kind: str, lr: float) -> None:
        super().__init__()
        self.lr = lr
        dense = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
        self.net = network() if kind == "cnn" else nn.Sequential(nn.Flatten(), *dense)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy in %."""
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean() * 100)

    def configure_optimizers(self) -> dict[str, object]:
        """SGD with Nesterov momentum, a cosine to 0."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


class Study:
    """Both networks, every way, some seeds."""

    def __init__(self, path: Path) -> None:
        x, y, test_x, test_y = load(path)
        self.train, self.test = TensorDataset(x, y), TensorDataset(test_x, test_y)

    def fit(self, model: Classifier, epochs: int, *callbacks: object) -> Trainer:
        """A Trainer that has trained it."""
        trainer = Trainer(
            max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        if epochs:
            order = BatchSampler(RandomSampler(self.train), 128, drop_last=True)
            trainer.fit(model, DataLoader(self.train, batch_size=None, sampler=order))
        return trainer

    def accuracy(self, trainer: Trainer, model: Classifier) -> float:
        """On the test set, in %: quantized if a callback of the Trainer does so."""
        loader = DataLoader(self.test, batch_size=1000)
        return round(float(trainer.test(model, loader, verbose=False)[0]["accuracy"]), 2)

    def run(self, kind: str, seed: int) -> None:
        """All ways of one network that have not run."""
        density, epochs, more = NETS[kind]
        seed_everything(seed, verbose=False)
        first = Classifier(kind, 0.1)
        self.fit(first, epochs, MaskUpdater(RigL(every=25), density, seed=seed))
        plain, fixed = first.state_dict(), MaskUpdater("static", density, init="magnitude")
        ways = {
            "sparse": [], "int8": [QuantizeSparse(8)], "int4": [QuantizeSparse(4, at=0)],
            "auto": [QuantizeSparse("auto", avg_bits=2.8, at=0)],
        }  # fmt: skip
        for way, callbacks in ways.items():
            seed_everything(seed, verbose=False)
            model, began = Classifier(kind, 0.02), time.process_time()
            model.load_state_dict(plain)
            trainer = self.fit(model, more, copy.deepcopy(fixed), *callbacks)
            accuracy = self.accuracy(trainer, model)
            row: Row = {"net": kind, "way": way, "seed": seed, "accuracy": accuracy, "epochs": f"{epochs}+{more}"}
            row |= measured(model, callbacks[0].quantization if callbacks else None)
            row |= {"seconds": round(time.process_time() - began, 1), **versions()}
            print(row, flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")


def measured(model: nn.Module, found: Quantization | None) -> Row:
    """Bits of live weights, and how many of these became 0."""
    weights = {n: w for n, w in model.named_parameters() if w.ndim > 1}
    live = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    if found is None:
        return {"live": sum(live.values()), "lost": 0, "bits": [], "average_bits": 32}
    codes = found.codes(model)
    lost = sum(live[name] - int(c.codes.count_nonzero()) for name, c in codes.items())
    average = sum(c.bits * live[name] for name, c in codes.items()) / sum(live[name] for name in codes)
    bits = [(name, c.bits) for name, c in codes.items()]
    return {"live": sum(live.values()), "lost": lost, "bits": bits, "average_bits": round(average, 3)}


def table() -> str:
    """Mean accuracy over the seeds, and the distance from float."""
    rows = {(r["net"], r["way"], r["seed"]): r for r in read(RESULTS)}
    lines = ["| | network | bits of a live weight | accuracy % | against float | seeds |", "|---|---|---|---|---|---|"]
    for kind in NETS:
        seeds = sorted({seed for net, _, seed in rows if net == kind})
        for way in WAYS:
            found = [rows[kind, way, seed] for seed in seeds if (kind, way, seed) in rows]
            if found:
                base = mean(float(str(rows[kind, "sparse", r["seed"]]["accuracy"])) for r in found)
                value = mean(float(str(r["accuracy"])) for r in found)
                bits = mean(float(str(r["average_bits"])) for r in found)
                far = "" if way == "sparse" else f"{value - base:+.2f}"
                lines.append(f"| {WAYS[way]} | {TITLES[kind]} | {bits:.3g} | {value:.2f} | {far} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        study = Study(args.data)
        done = {(r["net"], r["seed"]) for r in read(RESULTS) if r["way"] == "auto"}
        for seed in args.seeds:
            for kind in NETS:
                if (kind, seed) not in done:
                    study.run(kind, seed)
    print(table())


if __name__ == "__main__":
    main()
