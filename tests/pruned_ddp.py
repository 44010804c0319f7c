"""What the two processes of test_bn_channel_pruner_ddp do."""

from pathlib import Path

import torch
from helpers import loader, saver, state_tensors, trainer, weights
from pruned import net, pruner

from lightning_sparse import MaskUpdater, RigL

DDP = {"strategy": "ddp", "devices": 2, "max_epochs": 3, "enable_checkpointing": True}


def pruned(rank: int, folder: Path, start: Path | None = None, seed: int | None = None, others=(), **settings) -> dict:
    """Dropout and random states of their own on the two ranks; rank 1's batch statistics are not rank 0's."""
    cut = pruner(0.4, at=[1, 2], **settings)
    model = net("adamw", 0.25, seed=rank if seed is None else seed)
    fit = trainer([cut, *others, saver(folder, 6)], **DDP)
    fit.fit(model, loader(4, 48, shuffle=True), ckpt_path=start)
    state = {name: value.clone() for name, value in state_tensors(fit.optimizers[0]).items()}
    kept = {f"{name}/{dim}": index for name, dims in cut.recipe.kept.items() for dim, index in dims.items()}
    learned = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = {"parameters": learned, "weights": weights(model), "state": state, "kept": kept}
    masks = others[0].masks if others else {}
    return found | {"cuts": len(cut.history.cuts), "masks": masks, "random": torch.get_rng_state()}


def on_a_rank(rank: int, folder: Path) -> dict:
    results = {"plain": pruned(rank, folder / "plain")}
    results["resumed"] = pruned(rank, folder / "plain", folder / "plain" / "step=12.ckpt", seed=50)
    results["late"] = pruned(rank, folder / "plain", folder / "plain" / "step=6.ckpt", seed=50)
    results["taylor"] = pruned(rank, folder / "taylor", criterion="taylor", penalty="group_lasso", l1="auto")
    results["never"] = pruned(rank, folder / "never", shrink="never")
    results["masks"] = pruned(rank, folder / "masks", others=[MaskUpdater(RigL(every=3, stop=1.0), 0.5)])
    return results
