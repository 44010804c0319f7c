"""What is trained by the processes that are killed, and the diary that tells what became of it."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contract import CASES
from helpers import DENSITY, digest, net, stateful, trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from pruned import net as with_norms
from pruned import pruner

from lightning_sparse import BNChannelPruner, DensityLogger, MaskUpdater, QuantizeSparse

# Of a way through the engine each: counts of layers, random growth, a ramp, latent weights, a budget that moves.
BESIDE_CHANNELS = ("rigl", "set", "granet", "str", "sparse_momentum")


class Story(NamedTuple):
    """What is trained, and how often it is saved."""

    algorithm: str
    optimizer: str
    accumulate: int
    every: int
    seed: int
    criterion: str = ""  # by which channels leave; empty: they stay
    penalty: str = ""
    shrink: str = ""
    bits: int = 0  # of weights that are trained quantized; 0: floats
    at: float = 0  # from where on


PHASES = ("before", "moving", "resting")  # of ranges: not there yet, following the training batches, fixed
NOW = {"phase": ""}  # of this process


def draw(seed: int, subject: str) -> Story:
    """A history; the same for the same seed."""
    dice = random.Random(seed)
    optimizers = ("sgd", "adam", "adamw", "amsgrad")
    cases = list(CASES) if subject == "masks" else BESIDE_CHANNELS
    story = Story(dice.choice(cases), dice.choice(optimizers), dice.choice((1, 2)), dice.choice((1, 2, 3)), seed)
    if subject == "masks":
        return story
    if subject == "quantized":
        return story._replace(bits=dice.choice((2, 4)), at=dice.choice((0.25, 0.5)))
    criterion, penalty = dice.choice(("gamma", "bn_std", "taylor")), dice.choice(("subgradient", "proximal"))
    return story._replace(criterion=criterion, penalty=penalty, shrink=dice.choice(("live", "live", "end")))


class Diary(Callback):
    """A line for every optimizer step: what the masks, the weights and the ranges were after it."""

    def __init__(
        self, updater: MaskUpdater, cuts: list[BNChannelPruner], quantizers: list[QuantizeSparse], file: Path
    ) -> None:
        self.updater, self.cuts, self.quantizers, self.file, self.steps = updater, cuts, quantizers, file, -1
        self.begins = bool(quantizers)

    def on_train_start(self, trainer, pl_module):
        self.steps = trainer.global_step  # batches that are accumulated after it move running statistics

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.begins:
            note(self.file.with_name("phases"), "begins", self.phase())
        self.begins = False

    def phase(self) -> str:
        known = [each.quantizer for each in self.quantizers if each.quantizer]
        return PHASES[bool(known) + any(each.frozen for each in known)]

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.steps == trainer.global_step:
            return  # a batch that is accumulated
        self.steps, engine = trainer.global_step, self.updater.sparsifier
        facts = (engine.steps, engine.updates, digest(self.updater.masks), digest(weights(pl_module)))
        pulled = [float(cut.pull.value()) for cut in self.cuts if cut.pull.engines]
        observed = [each.quantizer.state_dict() for each in self.quantizers if each.quantizer]
        ranges = [digest({"ranges": each["ranges"]}) for each in observed]
        note(self.file, f"step {self.steps}", [*facts, *pulled, *map(decisions, self.cuts), *ranges])
        NOW["phase"] = self.phase()


class Ledger(Logger):
    """What was logged, a line for every entry: a fit that goes on logs what the unbroken one does.

    But for what ``LightningModule.log`` was given: Lightning writes that after the step's checkpoint, with the epoch,
    and a kill between the two loses it for good.
    """

    name, version = "ledger", "0"

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def log_hyperparams(self, *_: Any) -> None: ...

    def log_metrics(self, metrics, step=None):
        if "epoch" not in metrics:
            note(self.file, f"log {step}", sorted(metrics.items()))


def note(file: Path, key: str, value: object) -> None:
    """One line in one write, which no kill can tear."""
    with open(file, "ab", buffering=0) as out:
        out.write(f"{key}\t{json.dumps(value)}\n".encode())


def decisions(cut: BNChannelPruner) -> dict[str, Any]:
    """What is left of each axis and when it was cut; how long epochs took is of no interest here."""
    rows = [[row.epoch, row.step, row.channels, row.params, row.flops] for row in cut.history.cuts]
    kept = {f"{name}/{dim}": index for name, dims in cut.recipe.kept.items() for dim, index in dims.items()}
    return {"done": cut.done, "cuts": rows, "kept": digest(kept), "held": digest(cut.held)}


def without_time(state: dict[str, Any]) -> dict[str, Any]:
    """A pruner's state, but for the seconds that its epochs took."""
    return {**state, "history": [{k: v for k, v in row.items() if k != "seconds"} for row in state["history"]]}


def integers(quantize: QuantizeSparse, model: Any) -> dict[str, Any]:
    """What export is given: codes and scales of weights, ranges of activations; and the callback's own state."""
    codes = {name: (each.codes, each.scale) for name, each in quantize.quantization.codes(model).items()}
    return {"codes": codes, "plan": quantize.quantization.state_dict(), "state": quantize.state_dict()}


def fit(story: Story, folder: Path, start: Path | None, seed: int) -> None:
    """Epochs of fourteen batches: two, or three with channels that leave after the first and the second; with quantized
    training 28 steps. A checkpoint after every few steps, and a copy of the last one."""
    updater, cuts = MaskUpdater(CASES[story.algorithm].algorithm, DENSITY), []
    quantizers = [QuantizeSparse(story.bits, at=story.at)] if story.bits else []
    if story.criterion:
        how = {"criterion": story.criterion, "penalty": story.penalty, "shrink": story.shrink}
        model, cuts = with_norms(story.optimizer, 0.25, seed=seed), [pruner(0.4, at=[1, 2], l1=1e-3, **how)]
    else:
        model = net(story.optimizer, 0.25, seed=seed)
    if start is None:
        random.seed(seed)  # a fork has another state of Python's than its parent
    settings = {"filename": "{step}", "save_top_k": -1, "save_last": True}
    keep = ModelCheckpoint(folder, every_n_train_steps=story.every, **settings)
    diary = Diary(updater, cuts, quantizers, folder / "diary")
    callbacks = [*cuts, updater, *quantizers, DensityLogger(1), diary, keep]
    epochs = 2 * story.accumulate if quantizers else 2 + len(cuts)
    settings = {"accumulate_grad_batches": story.accumulate, "logger": Ledger(folder / "diary"), "log_every_n_steps": 1}
    fitted = trainer(callbacks, max_epochs=epochs, enable_checkpointing=True, **settings)
    fitted.fit(model, stateful(4, 56, shuffle=True), ckpt_path=start)
    left = {
        "weights": weights(model),
        "optimizer": fitted.optimizers[0].state_dict(),
        "updater": updater.state_dict(),  # after a kill that came too late there is no engine: nothing is left to train
        "cuts": [without_time(cut.state_dict()) for cut in cuts],
        "quantized": [integers(each, model) for each in quantizers],
        "rng": torch.get_rng_state(),
        "steps": fitted.global_step,
    }
    torch.save(left, folder / "end.pt")
