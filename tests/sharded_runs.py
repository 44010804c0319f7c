"""What the processes of test_sharded do: every scenario once, results in files.

    WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 PYTHONPATH=.:tests \
        python tests/sharded_runs.py FOLDER    # and the same with 1
"""

import os
import sys
from pathlib import Path

import torch
from contract import CASES
from helpers import DENSITY, QUIET, Net, digest, loader, net, samples, saver
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from lightning_sparse import DensityLogger, MaskUpdater, RigL, Sparsifier

SAMPLES, GLOBAL_BATCH, STEPS, HALF = 96, 16, 12, 6  # six steps an epoch; masks move after every third
MAIN = ["static", "set", "rigl", "gmp", "sparse_momentum"]
STATELESS = [name for name in CASES if CASES[name].algorithm.rewind_step is None and not CASES[name].latent]
WORKING = [name for name in STATELESS if CASES[name].algorithm.asks == "nothing"]
SAVED = ["rigl", "sparse_momentum"]
CLIPPED = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "optimizer": "sgd"}
REPORTED = ("density", "nonzero_density", "flops_share")
SHARES = {"alone": (1, 1), "fsdp": (2, 1), "one group": (2, 1), "tp": (1, 2), "both": (2, 2), "four": (4, 1)}


class Shared(Net):
    """The same classifier, its weights shared by processes. Five outputs do not divide by two, nor six by four."""

    def __init__(self, how: str, optimizer: str) -> None:
        super().__init__(optimizer)
        self.how = how

    def configure_model(self):
        spread(self.net, self.how, self._device_mesh)


def spread(body: nn.Sequential, how: str, mesh, **settings) -> None:
    """Over a mesh of two dimensions."""
    if how in ("tp", "both"):
        parallelize_module(body, mesh["tensor_parallel"], {"4": ColwiseParallel(), "6": RowwiseParallel()})
    if how != "tp":
        for part in [body] if how == "one group" else [body[4], body[6], body]:
            fully_shard(part, mesh=mesh["data_parallel"], **settings)


def whole(tensor: Tensor) -> Tensor:
    """By torch alone."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def dead(tensor: Tensor, mask: Tensor) -> int:
    """How many dead entries are not zero; NaN is not zero either."""
    return int((~(whole(tensor)[~mask] == 0)).sum())


class Witness(Callback):
    """What every forward pass saw and what every step left, in whole tensors."""

    def __init__(self, updater: MaskUpdater) -> None:
        self.updater, self.steps = updater, 0
        self.seen = {"forwards": 0, "leaks": 0, "state_leaks": 0, "masks": [], "counts": []}

    def on_train_start(self, trainer, pl_module):
        self.steps = trainer.global_step
        for prefix, module in pl_module.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.register_forward_pre_hook(self._look(f"{prefix}.weight"))

    def _look(self, name):
        def hook(module, args):
            self.seen["forwards"] += 1
            self.seen["leaks"] += dead(module.weight, self.updater.masks[name])

        return hook

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.steps == trainer.global_step:
            return
        self.steps, masks = trainer.global_step, self.updater.masks
        self.seen["masks"].append(digest(masks))
        self.seen["counts"].append({name: int(mask.sum()) for name, mask in masks.items()})
        for name, weight in pl_module.named_parameters():
            for value in trainer.optimizers[0].state.get(weight, {}).values() if name in masks else ():
                self.seen["state_leaks"] += dead(value, masks[name]) if value.shape == weight.shape else 0


def step_of(folder: Path) -> Path:
    return folder / f"step={HALF}.ckpt"


def fit(how: str, name: str, *, start=None, folder=None, optimizer="adamw", one_file=True, callbacks=(), **settings):
    """A run whose every step sees the same sixteen samples, however they are divided; what it left."""
    data, tensor = SHARES[how]
    updater = MaskUpdater(CASES[name].algorithm, DENSITY)
    witness = Witness(updater)
    keeping = [saver(folder, HALF)] if folder and not start else []
    torch.manual_seed(1)
    model = Net(optimizer) if how == "alone" else Shared(how, optimizer)
    if how != "alone":
        settings["strategy"] = ModelParallelStrategy(data, tensor, save_distributed_checkpoint=not one_file)
        settings["devices"] = data * tensor
    place = int(os.environ.get("LOCAL_RANK", "0")) // tensor
    sampler = DistributedSampler(samples(SAMPLES), data, place, shuffle=False)
    accumulate = settings.get("accumulate_grad_batches", 1)
    batches = loader(GLOBAL_BATCH // data // accumulate, SAMPLES, sampler=sampler)
    steps = STEPS if name in MAIN or CASES[name].keeps == "ramp" else HALF
    settings = {**QUIET, "max_steps": steps, "enable_checkpointing": bool(keeping), **settings}
    trainer = Trainer(callbacks=[updater, witness, *callbacks, *keeping], use_distributed_sampler=False, **settings)
    val = loader(GLOBAL_BATCH // data, 32) if how == "one group" else None
    trainer.fit(model, batches, val, ckpt_path=start)
    weights = {name: whole(weight) for name, weight in model.named_parameters()}
    stepped = [weight for group in trainer.optimizers[0].param_groups for weight in group["params"]]
    rows = [trainer.optimizers[0].state[weight] for weight in stepped]
    state = [whole(row[key]) for row in rows for key in sorted(row) if isinstance(row[key], Tensor)]
    masks = {name: mask.clone() for name, mask in updater.masks.items()}
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key in REPORTED}
    ends = {"weights": weights, "state": state, "final": masks, "metrics": metrics, "density": updater.density()}
    return {**witness.seen, **ends, "updates": updater.sparsifier.updates}


def raw(optimizer, every: int = 1, how: str = "fsdp", **settings):
    """A loop without Lightning: the net, its optimizer, its engine, and a function that takes one backward pass."""
    mesh = init_device_mesh("cpu", SHARES[how], mesh_dim_names=("data_parallel", "tensor_parallel"))
    model = net()
    spread(model.net, how, mesh, **settings)
    stepper = optimizer(model.parameters())
    algorithm = RigL(every=every, stop=STEPS)
    engine = Sparsifier(model, algorithm, DENSITY, optimizers=[stepper], total_steps=STEPS)
    images, labels = (torch.stack(list(t)) for t in zip(*[samples()[i] for i in range(8)], strict=True))

    def backward(scale=1.0):
        stepper.zero_grad()
        (F.cross_entropy(model.net(images).float(), labels) * scale).backward()

    return model, stepper, engine, backward


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def poisoned(rank: int) -> dict:
    """The gradient of step 2 is infinite in one entry, which only the second process holds."""
    model, stepper, engine, backward = raw(sgd)
    masks = []
    for step in (1, 2, 3):
        backward()
        if step == 2 and rank == 1:
            model.net[4].weight.grad.to_local()[0, 0] = torch.inf
        engine.stage(stepper)
        if step == 2:
            stepper.zero_grad(set_to_none=False)
        stepper.step()
        masks.append(digest(engine.masks))
    return {"masks": masks, "updates": engine.updates}


def many_optimizers() -> dict:
    """Optimizers whose state may be filled whatever the gradient, in lower precision too; and LBFGS."""
    kinds = {
        "adagrad": (lambda w: torch.optim.Adagrad(w, lr=0.01, initial_accumulator_value=0.1), {}),
        "radam": (lambda w: torch.optim.RAdam(w, lr=0.01, weight_decay=0.1), {}),
        "bfloat16": (sgd, {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}),
    }
    results = {}
    for kind, (optimizer, settings) in kinds.items():
        model, stepper, engine, backward = raw(optimizer, every=2, **settings)
        leaks = 0
        for _ in range(4):
            backward()
            stepper.step()
            for name, weight in model.named_parameters():
                for value in [weight, *stepper.state[weight].values()] if name in engine.masks else ():
                    leaks += dead(value, engine.masks[name]) if value.shape == weight.shape else 0
        results[kind] = {"leaks": leaks, "updates": engine.updates, "density": engine.density()}
    try:
        raw(torch.optim.LBFGS)
    except ValueError as error:
        results["lbfgs"] = str(error)
    return results


def gathered() -> str:
    """What a step is refused with while a module shows gathered copies of its weights."""
    model, stepper, _, backward = raw(sgd)
    for module in model.net.modules():
        if hasattr(module, "set_reshard_after_backward"):
            module.set_reshard_after_backward(False)
    backward()
    try:
        stepper.step()
    except RuntimeError as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    """What algorithms are refused with on weights that processes share."""
    model, _, _, _ = raw(sgd)
    found = {}
    for name in [name for name in CASES if name not in WORKING]:
        try:
            Sparsifier(model, CASES[name].algorithm, DENSITY, total_steps=STEPS, epoch_steps=HALF)
        except ValueError as error:
            found[name] = str(error)
    return found


def two(rank: int, folder: Path) -> dict:
    """Everything that two processes can show. What the file or folder of a run says is where it is saved half-way."""
    results = {f"fsdp {n}": fit("fsdp", n, folder=folder / f"{n} file" if n in SAVED else None) for n in WORKING}
    results |= {f"tp {n}": fit("tp", n) for n in MAIN}
    settings = {"logger": CSVLogger(folder), "log_every_n_steps": 1}
    settings |= {"one_file": False, "folder": folder / "rigl folder"}
    results["one group"] = fit("one group", "rigl", callbacks=[DensityLogger(1, histograms=True)], **settings)
    results["one group again"] = fit("one group", "rigl", start=step_of(folder / "rigl folder"), one_file=False)
    for n in SAVED:
        results[f"{n} again"] = fit("fsdp", n, start=step_of(folder / f"{n} file"))
        results[f"{n} from one"] = fit("tp" if n == "rigl" else "fsdp", n, start=step_of(folder / f"{n} alone"))
    results["clipped"] = fit("fsdp", "rigl", max_steps=HALF, **CLIPPED)
    results |= {"poisoned": poisoned(rank), "optimizers": many_optimizers(), "gathered": gathered()}
    return results | {"refused": refusals()}


def four(rank: int, folder: Path) -> dict:
    """Both kinds at once, shards that are empty, and a checkpoint of two processes."""
    results = {f"both {n}": fit("both", n) for n in MAIN}
    results |= {f"four {n}": fit("four", n) for n in ("rigl", "gmp")}
    for kind, one_file in (("file", True), ("folder", False)):
        results[f"from {kind}"] = fit("four", "rigl", start=step_of(folder / f"rigl {kind}"), one_file=one_file)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    here, own, processes = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    found = two(own, here) if processes == 2 else four(own, here)
    torch.save(found, here / f"{own} of {processes}.pt")
