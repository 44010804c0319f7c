"""What many tests share: a small network, its data, a quiet Trainer, and a recorder of what a run did."""

import hashlib
import warnings
from collections.abc import Iterable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

DENSITY = 0.25
# By hand: ERK gives a layer eps * (sum of its dimensions). The sums are 6+2+3+3 = 14, 20+96 = 116 and 5+20 = 25, so
# eps = 0.25 * (108 + 1920 + 100) / 155 = 532 / 155; shares 48.05, 398.14, 85.81; largest remainder.
LIVE = {"net.0.weight": 48, "net.4.weight": 398, "net.6.weight": 86}
SIZES = {"net.0.weight": 108, "net.4.weight": 1920, "net.6.weight": 100}
TOTAL = 532


class Mixing(torch.optim.Optimizer):
    """Like Muon and Shampoo, an update of an entry depends on all others; here its state does too."""

    def __init__(self, weights, lr: float = 0.02) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in [w for w in group["params"] if w.grad is not None]:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.mul_(0.9).add_(weight.grad + weight.grad.abs().mean())
                weight.sub_(average + average.abs().mean(), alpha=group["lr"])
        return loss


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda weights: torch.optim.Adam(weights, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-1),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-1, fused=True),
    "amsgrad": lambda weights: torch.optim.Adam(weights, lr=1e-2, amsgrad=True),
    "mixing": Mixing,
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3),
}


def body(dropout: float = 0.0) -> nn.Sequential:
    """Convolution and two linear layers, with biases that stay dense."""
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 5))


class Net(LightningModule):
    """A classifier that knows nothing of sparsity."""

    def __init__(self, optimizer: str = "sgd", dropout: float = 0.0) -> None:
        super().__init__()
        self.net, self.optimizer = body(dropout), optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


class ByHand:
    """Before the class of a model: its one optimizer is stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Bare:
    """What Lightning accepts as an optimizer, without torch's hooks."""

    def __init__(self, weights):
        self.param_groups, self.state, self.defaults = [{"params": list(weights)}], {}, {}

    def step(self, closure=None):
        return closure()

    def zero_grad(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def net(optimizer: str = "sgd", dropout: float = 0.0, seed: int = 1) -> Net:
    """A network whose first weights depend on ``seed`` alone; the global random state ends at ``seed`` too."""
    torch.manual_seed(seed)
    model = Net(optimizer, dropout)
    torch.manual_seed(seed)
    return model


def samples(n: int = 48) -> TensorDataset:
    """Images of noise with labels; the same at every call."""
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(
        torch.randn(n, 2, 6, 6, generator=generator), torch.randint(0, 5, (n,), generator=generator)
    )


def loader(batch: int = 4, n: int = 48, **settings) -> DataLoader:
    return DataLoader(samples(n), batch_size=batch, **settings)


def stateful(batch: int = 4, n: int = 48, **settings) -> StatefulDataLoader:
    """A loader that goes on in the middle of an epoch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*set_vital.*")  # torchdata 0.11 under torch 2.13
        return StatefulDataLoader(samples(n), batch_size=batch, **settings)


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(callbacks: Iterable[Callback] = (), **settings) -> Trainer:
    return Trainer(**{**QUIET, "callbacks": list(callbacks), **settings})


def saver(folder, every: int) -> ModelCheckpoint:
    """Keeps a checkpoint ``step=n.ckpt`` after every so many optimizer steps."""
    return ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def digest(tensors: dict[str, Tensor]) -> str:
    """One word for a dict of tensors, to compare by."""
    words = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        words.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return words.hexdigest()[:16]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def state_tensors(optimizer) -> dict[str, Tensor]:
    """Every tensor an optimizer remembers, by position and name."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{key}": v for i, row in state.items() for key, v in row.items() if isinstance(v, Tensor)}


def dead_state(optimizer, model: nn.Module, masks: dict[str, Tensor]) -> int:
    """How many entries of the optimizer's state of dead weights are not zero."""
    named = dict(model.named_parameters())
    rows = [(optimizer.state.get(named[name], {}), mask) for name, mask in masks.items()]
    found = [v[~mask] for row, mask in rows for v in row.values() if isinstance(v, Tensor) and v.shape == mask.shape]
    return sum(int((~(v == 0)).sum()) for v in found)  # NaN is not zero either


class Recorder(Callback):
    """Watches a run from outside: what every forward saw, and what every optimizer step left.

    Attributes:
        forwards: how many forward passes of masked layers were looked at.
        leaks: dead weights that were not zero in a forward pass, all passes together.
        counts: live weights by layer after each optimizer step.
        masks: a digest of the masks after each optimizer step.
        state_leaks: entries of optimizer state of dead weights that were not zero, all steps together.
        last_leaks: the same after the last step.
    """

    def __init__(self, updater) -> None:
        self.updater = updater
        self.forwards = self.leaks = self.state_leaks = self.last_leaks = 0
        self.counts: list[dict[str, int]] = []
        self.masks: list[str] = []
        self._handles = []
        self._steps = 0

    def on_train_start(self, trainer, pl_module):
        self._steps = trainer.global_step
        for prefix, module in pl_module.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self._handles.append(module.register_forward_pre_hook(self._look(f"{prefix}.weight")))

    def _look(self, name):
        name = name.replace("_orig_mod.", "")

        def hook(module, args):
            mask = self.updater.masks.get(name)
            if mask is not None:
                self.forwards += 1
                self.leaks += int((~(module.weight.detach()[~mask] == 0)).sum())

        return hook

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self._steps == trainer.global_step:
            return
        self._steps, masks = trainer.global_step, self.updater.masks
        self.counts.append({name: int(mask.sum()) for name, mask in masks.items()})
        self.masks.append(digest(masks))
        self.last_leaks = sum(dead_state(o, pl_module, masks) for o in trainer.optimizers)
        self.state_leaks += self.last_leaks

    def teardown(self, trainer, pl_module, stage):
        for handle in self._handles:
            handle.remove()

    def moved_at(self, step: int) -> bool:
        """Whether masks are others after optimizer step ``step`` (from 2) than after the one before."""
        return self.masks[step - 1] != self.masks[step - 2]

    @property
    def moves(self) -> int:
        """After how many steps the masks were others than after the step before."""
        return sum(self.moved_at(step) for step in range(2, len(self.masks) + 1))
