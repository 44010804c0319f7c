"""Fits whose workers are forked or spawned, and what is left in the process that started them.

    python pruned_workers.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from helpers import loader, samples, trainer, weights
from lightning.pytorch import Callback
from pruned import Net, pruner, widths
from torch.nn import functional as F

from lightning_sparse import MaskUpdater, RigL, ShapeFollowing


class Scaled(Net):
    """Some of its shapes no state dict tells of: a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 12), persistent=False)

    def forward(self, x):
        x = self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3))
        return self.head(F.relu(self.bn3(self.hidden(x))) * self.scale)


class Following(ShapeFollowing, Scaled):
    """By the mixin."""


class Tells(Callback):
    """A worker's own view of its end; it runs after the pruner."""

    def __init__(self, cut, file: Path) -> None:
        self.cut, self.file = cut, file

    def on_train_end(self, trainer, pl_module):
        pl_module.eval()
        with torch.no_grad():
            says = pl_module(samples(8)[:][0])
        if trainer.is_global_zero:
            torch.save(left(self.cut, pl_module, says), self.file)


def left(cut, model, says) -> dict:
    channels = {name: list(pair) for name, pair in cut.channels().items()}
    return {"weights": weights(model), "widths": list(widths(model)), "says": says, "channels": channels}


def launch(folder: Path, way: str, attach: bool, shrink: str) -> None:
    """Two cuts with masks in two workers, then two epochs more in this process, of the model that came back."""
    torch.manual_seed(3)
    cut, model = pruner(0.5, at=[1, 2], shrink=shrink), Scaled() if attach else Following()
    if attach:
        cut.attach(model)
    masks = MaskUpdater(RigL(every=3, stop=1.0), 0.5)
    ids = [id(weight) for weight in model.parameters()]
    fit = trainer([cut, masks, Tells(cut, folder / "worker.pt")], max_epochs=3, strategy=way, devices=2)
    fit.fit(model, loader())
    model.eval()
    with torch.no_grad():
        found = left(cut, model, model(samples(8)[:][0]))
    found["same objects"] = ids == [id(weight) for weight in model.parameters()]
    model.train()
    trainer([], max_epochs=2).fit(model, loader())
    found["finite"] = all(bool(weight.isfinite().all()) for weight in model.parameters())
    torch.save(found, folder / "parent.pt")


SCENARIOS = {
    "spawned": ("ddp_spawn", True, "live"),
    "mixin": ("ddp_notebook", False, "live"),
    "end": ("ddp_notebook", True, "end"),
    "never": ("ddp_notebook", True, "never"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, scenario in SCENARIOS.items():
        (own := Path(sys.argv[1]) / name).mkdir()
        launch(own, *scenario)
