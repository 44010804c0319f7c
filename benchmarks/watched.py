"""One small training, looked at from outside: what its forward passes used. For probes.py."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Lines = tuple[list[Callback], Callable[[], object]]  # callbacks for the Trainer, and what is called after fit
Library = Callable[[nn.Module], Lines]
Act = Callable[["Net"], object]
BODIES: dict[str, Callable[[], list[nn.Module]]] = {
    "mlp": lambda: [nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 5)],
    "norm": lambda: [nn.Linear(20, 30), nn.LayerNorm(30), nn.Tanh(), nn.Linear(30, 5)],
    "conv": lambda: [nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 10, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 5)],
}


class Net(LightningModule):
    """A classifier that knows nothing of sparsity."""

    def __init__(self, body: str = "mlp", lbfgs: bool = False) -> None:
        super().__init__()
        self.net, self.lbfgs = nn.Sequential(*BODIES[body]()), lbfgs
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):  # none begins as zero
                nn.init.normal_(parameter, std=0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Momentum and weight decay move a weight even where its gradient is masked."""
        if self.lbfgs:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def effective(model: nn.Module) -> list[Tensor]:
    """The weights that a forward pass uses, whatever they are stored as."""
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def live(model: nn.Module) -> int:
    """How many of them are not zero."""
    return sum(int(weight.count_nonzero()) for weight in effective(model))


class Watch(Callback):
    """Counts non-zero weights in every forward pass; calls ``also`` before every batch of the second epoch."""

    def __init__(self, also: Act | None) -> None:
        self.also, self.seen, self.keys = also, list[tuple[int, int]](), set[str]()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin to look."""
        note = self.seen.append
        pl_module.net.register_forward_hook(lambda net, *_: note((pl_module.current_epoch, live(net))))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        self.keys = set(pl_module.state_dict())
        if self.also and trainer.current_epoch == 1:
            self.also(pl_module)


class Fit(NamedTuple):
    """What is left of a fit."""

    model: Net
    watch: Watch

    def worst(self) -> int:
        """The most non-zero weights in a forward pass from the second epoch on, when every library has pruned."""
        return max(count for epoch, count in self.watch.seen if epoch >= 1)


def fit(
    library: Library,
    body: str = "mlp",
    *,
    lbfgs: bool = False,
    extra: Sequence[Callback] = (),
    also: Act | None = None,
    start: Path | None = None,
    seed: int = 0,
) -> Fit:
    """Four epochs of ten steps. The first weights depend on ``seed``, the data do not."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 20, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    torch.manual_seed(seed)
    model, watch = Net(body, lbfgs), Watch(also)
    callbacks, finish = library(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=4,
            callbacks=[*callbacks, watch, *extra],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in extra),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=4), ckpt_path=start)
    finish()
    return Fit(model, watch)
