"""What the tests of quantized training share: whether weights are on a grid, and a recorder of what forwards saw."""

import torch
from helpers import loader, trainer
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_sparse import QuantizeSparse


def on_grid(weight: Tensor, bits: int) -> bool:
    """Whether each output channel holds multiples of one step, up to 2**(bits-1) of it, by the definition."""
    rows = weight.detach().flatten(1).double()
    most, fine = min(2 ** (bits - 1), 127), torch.zeros(len(rows), dtype=torch.bool)
    for largest in range(1, most + 1) if bits <= 3 else [most]:  # few bits need not reach the last code
        step = rows.abs().amax(1, keepdim=True) / largest
        codes = rows / torch.where(step > 0, step, torch.ones_like(step))
        fine |= (codes - codes.round()).abs().amax(1) < 1e-4
    return bool(fine.all())


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name.replace("_orig_mod.", ""): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


class Seen(Callback):
    """Looks at the weights of all layers in every forward pass, after all that happens before it.

    Attributes:
        grid: by mode ("train" or "eval"), for each forward pass of a layer: whether its weight was on the grid.
    """

    def __init__(self, bits: int = 4) -> None:
        self.bits, self.grid, self._handles = bits, {"train": [], "eval": []}, []

    def setup(self, trainer, pl_module, stage):
        for module in layers(pl_module).values():
            self._handles.append(module.register_forward_hook(self._look))

    def _look(self, module, args, output):
        self.grid["train" if module.training else "eval"].append(on_grid(module.weight, self.bits))

    def teardown(self, trainer, pl_module, stage):
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Watch(Callback):
    """Copies of the parameters as other callbacks meet them: after each batch, and when validation is over."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def on_validation_end(self, trainer, pl_module):
        self.after.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def fit(model, *callbacks, quantize=None, val=True, batch=8, **settings):
    """Three epochs of six steps, quantized from the second on."""
    quantize = QuantizeSparse(4, at=1) if quantize is None else quantize
    run = trainer([*callbacks, quantize], **{"max_epochs": 3, "num_sanity_val_steps": 0, **settings})
    run.fit(model, loader(batch), loader(24) if val else None)
    return quantize, run


def zeros_are_the_masks(model, quantize: QuantizeSparse, masks) -> None:
    codes = quantize.quantization.codes(model)
    for name, mask in masks.items():
        weight = model.state_dict()[name]
        assert not weight[~mask].any()
        assert int((weight == 0).sum()) >= int((~mask).sum()) > 0
        assert torch.equal(codes[name].codes == 0, weight == 0)
