"""What the two processes of test_quantize_sparse_ddp do."""

import torch
from helpers import loader, net, saver, trainer, weights

from lightning_sparse import MaskUpdater, QuantizeSparse, RigL


def run(folder, rank: int, seed: int, start=None) -> dict:
    quantize, model = QuantizeSparse(4, at=1), net("adamw", dropout=0.2, seed=seed + rank)
    updater, shown = MaskUpdater(RigL(every=2), 0.25), []
    model.net[4].register_forward_hook(lambda m, a, o: shown.append(m.weight.detach().clone()))
    fit = trainer(
        [updater, quantize, saver(folder, 6)],
        max_epochs=3,
        strategy="ddp",
        devices=2,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    fit.fit(model, loader(4, shuffle=True), loader(8), ckpt_path=start)
    found = quantize.quantization
    ranges = {name: torch.tensor([r.scale, r.zero_point]) for name, r in found.ranges.items()}
    codes = {name: each.codes for name, each in found.codes(model).items()}
    return {"weights": weights(model), "ranges": ranges, "codes": codes, "masks": updater.masks, "shown": shown[-1]}


def on_a_rank(rank: int, folder) -> dict:
    whole = run(folder / "runs", rank, 1)
    return {"whole": whole, "again": run(folder / "runs", rank, 5, folder / "runs" / "step=12.ckpt")}
