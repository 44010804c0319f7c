"""Network slimming of a VGG with BatchNorm on CIFAR-10: what pruning costs, what fine-tuning and training anew give.

python benchmarks/slimming.py --data cifar10_jpgbytes.npz [--width 0.25] [--epochs 16] [--seed 0]
Every part leaves its weights in --work and a line in results/slimming.jsonl; what is there is not run again.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from cifar import VGG, Batches, accuracy, begin, load
from lightning.pytorch import Trainer, seed_everything
from record import Row, read, versions
from torch.utils.data import DataLoader

from lightning_sparse import Regularizer

RESULTS = Path(__file__).parent / "results" / "slimming.jsonl"
WORDS = {
    "trained": "with L1 on gammas",
    "fine-tuned": "30 % of its channels, trained on",
    "scratch": "the same widths from scratch",
    "unpruned, trained on": "all channels, trained on",
}
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class Study:
    """The parts of the comparison, each run once."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings, self.train, self.test = settings, load(settings.data, "train"), load(settings.data, "test")
        self.work = settings.work
        self.work.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, make: Callable[[], VGG], callbacks: list[Regularizer], epochs: int) -> VGG:
        """A trained model: from its file, or trained now and noted."""
        s = self.settings
        file, model = self.work / f"{name}-w{s.width}-e{s.epochs}-s{s.seed}.pt", make()
        if file.exists():
            model.load_state_dict(torch.load(file, weights_only=True))
            return model
        seed_everything(s.seed, verbose=False)
        if name == "scratch":
            begin(model.net)
        model.epochs = epochs
        loader = DataLoader(Batches(*self.train), batch_size=None)
        trainer = Trainer(
            max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        torch.save(model.state_dict(), file)
        self.note(name, model, epochs=epochs)
        return model

    def note(self, name: str, model: VGG, **more: object) -> None:
        """A line of the results."""
        s = self.settings
        row: Row = {"part": name, "width": s.width, "seed": s.seed, "l1": s.l1, **more}
        row["accuracy"] = round(accuracy(model.net, *self.test), 2)
        row |= {"params": sum(p.numel() for p in model.parameters()), **versions()}
        print(row, flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def slimmed(model: VGG, keep: float) -> VGG:
    """A copy with that share of its channels: the largest gammas of all layers together, as published."""
    from lightning_sparse import slim

    small = copy.deepcopy(model)
    if keep < 1:
        slim(small.net, torch.zeros(2, 3, 32, 32), keep, criterion="gamma", scope="global", round_to=1)
    return small


def table(path: Path = RESULTS) -> str:
    """Accuracy of every share without training on, and of what was trained on."""
    rows = read(path)
    lines = ["| channels that stay | parameters | accuracy, not trained on |", "|---|---|---|"]
    lines += [f"| {r['keep']:.0%} | {r['params']:,} | {r['accuracy']:.2f} |" for r in rows if r["part"] == "pruned"]
    lines += ["", "| trained | epochs | parameters | accuracy |", "|---|---|---|---|"]
    lines += [
        f"| {WORDS[str(r['part'])]} | {r['epochs']} | {r['params']:,} | {r['accuracy']:.2f} |"
        for r in rows
        if r["part"] in WORDS
    ]
    return "\n".join(lines)


def main() -> None:
    """Train, prune at every share, fine-tune one, train its shape anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("logs/slimming"))
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--l1", type=float, default=5e-4, help="5 times the paper's, for a tenth of its epochs")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--only", choices=["trained"], default=None)
    s = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(s)
    penalty = Regularizer("l1", s.l1, on="gammas")
    trained = study.part("trained", lambda: VGG(s.width, s.epochs), [penalty], s.epochs)
    if s.only:
        return
    done = {row["keep"] for row in read(RESULTS) if row["part"] == "pruned" and row["seed"] == s.seed}
    for keep in SHARES:
        if keep not in done:
            study.note("pruned", slimmed(trained, keep), keep=keep)
    study.part("fine-tuned", lambda: slimmed(trained, s.keep), [], s.epochs)
    study.part("scratch", lambda: slimmed(trained, s.keep), [], s.epochs)
    study.part("unpruned, trained on", lambda: slimmed(trained, 1.0), [], s.epochs)


if __name__ == "__main__":
    main()
