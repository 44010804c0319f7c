"""Quantization begins: which layers, how many bits, which ranges."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info, rank_zero_warn
from lightning_sparse.callbacks.channels.surgery import agree_on_buffers
from lightning_sparse.callbacks.channels.trace import quiet, quiet_step
from lightning_sparse.callbacks.data import TrainerBatches, TrainerLoss
from lightning_sparse.callbacks.mask_updater import MaskUpdater
from lightning_sparse.callbacks.monitors import watchers
from lightning_sparse.callbacks.run import follow_averages
from lightning_sparse.channels.quiet import evaluating, plain_paths
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.probe import Probe, untouched_randomness
from lightning_sparse.core.select import modules_of
from lightning_sparse.quant.bits import choose_bits
from lightning_sparse.quant.layers import UNCALLED, Candidates, candidates, fixed_bits, parameter
from lightning_sparse.quant.quantization import Layer
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find
from lightning_sparse.quant.zeros import keep_zeros, partly_zero

if TYPE_CHECKING:
    from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse

_SEED = 0  # of the order of batches that are looked at


def check(callback: "QuantizeSparse", trainer: Any, pl_module: Any) -> Candidates:
    """The layers that can be quantized.

    Raises:
        ValueError: on globs that fit nothing, weights that another QuantizeSparse has, no layer at all; all at once.
    """
    found = candidates(pl_module, callback.include, callback.exclude)
    if not isinstance(callback.bits, str):
        fixed_bits(list(found.modules), callback.bits)
    for other in trainer.callbacks:
        if isinstance(other, type(callback)) and other is not callback:
            theirs = candidates(pl_module, other.include, other.exclude).modules
            if both := [name for name in found.modules if name in theirs]:
                text = f"{callback.name} and {other.name} both want {', '.join(both)}; give each its own include= globs"
                raise MisconfigurationException(text)
    return found


def begin(callback: "QuantizeSparse", trainer: Any, pl_module: Any) -> Quantizer:
    """Find the layers, choose their bits, and calibrate the ranges; weights show floats afterwards.

    The training data is read through copies of its loaders, in evaluation mode: the run does not notice.

    Raises:
        MisconfigurationException: without training data, or where the training step cannot be run on its own.
        ValueError: on weights with NaN or infinity, or a budget that cannot be met.
    """
    found = check(callback, trainer, pl_module)
    _refuse_wild(callback.name, found)
    agree_on_buffers(trainer, pl_module)
    fixed, unwanted = (dict.fromkeys(found.modules, 8), dict[str, str]())
    if not isinstance(callback.bits, str):
        fixed, unwanted = fixed_bits(list(found.modules), callback.bits)
    with _looking(callback.name, trainer, pl_module):
        layers = _trace(callback, trainer, pl_module, fixed)
    if callback.bits == "auto":
        bits = _auto(callback, trainer, pl_module, list(layers))
        layers = {name: replace(layer, bits=bits[name]) for name, layer in layers.items()}
    uncalled = {parameter(name): UNCALLED for name in fixed if name not in layers}
    if not layers:
        raise MisconfigurationException(f"{callback.name}: no layer is left to quantize: {uncalled | unwanted}")
    left = {**found.left, **unwanted, **uncalled}
    quantizer = Quantizer(pl_module, layers, act_bits=callback.act_bits, left=left)
    try:
        with _looking(callback.name, trainer, pl_module), evaluating(pl_module), plain_paths():
            torch.manual_seed(_SEED)  # of augmentations; put back
            quantizer.calibrate(_runs(callback, trainer, pl_module))
    except BaseException:
        quantizer.detach()
        raise
    quantizer.close()
    rank_zero_info(_table(callback.name, pl_module, quantizer))
    _warn(callback.name, quantizer)
    return quantizer


def start_zeros(callback: "QuantizeSparse", trainer: Any, pl_module: Any, state: Mapping[str, Any]) -> None:
    """Zeros that no MaskUpdater keeps stay zero from here on.

    Args:
        callback: whose layers they are in.
        trainer: in the fit.
        pl_module: its model.
        state: of a run that goes on; empty for a new one.
    """
    assert callback.quantizer is not None
    kept = {name for other in trainer.callbacks if isinstance(other, MaskUpdater) for name in other.masks}
    names = [parameter(name) for name in callback.quantizer.layers]
    densities = state["densities"] if state else partly_zero(pl_module, names, kept)
    callback.zeros = keep_zeros(pl_module, densities, trainer.optimizers, state["engine"] if state else None)
    callback.densities = densities
    if callback.zeros is not None:
        follow_averages(trainer, callback.zeros)
        size = sum(p.size for p in callback.zeros.params.values())
        live = sum(p.live for p in callback.zeros.params.values())
        rank_zero_info(f"{callback.name}: zeros stay zero in {', '.join(densities)}: {live:,} of {size:,} weights live")


def _trace(callback: "QuantizeSparse", trainer: Any, pl_module: Any, bits: Mapping[str, int]) -> dict[str, Layer]:
    batch = next(iter(TrainerBatches(trainer, _SEED)), None)
    if batch is None:
        raise MisconfigurationException(f"{callback.name}: there is no training batch to calibrate with")
    run: Callable[[], Any] = lambda: quiet_step(trainer, pl_module, batch)  # noqa: E731
    return find(pl_module, run, bits, activations=callback.act_bits is not None)


def _runs(callback: "QuantizeSparse", trainer: Any, pl_module: Any) -> Iterator[Callable[[], Any]]:
    for batch in islice(TrainerBatches(trainer, _SEED), callback.calibrate_batches):
        yield lambda batch=batch: quiet_step(trainer, pl_module, batch)  # type: ignore[misc]


@contextmanager
def _looking(name: str, trainer: Any, pl_module: Any) -> Iterator[None]:
    """Inside, training steps leave no trace; what they raise is told as what it prevents."""
    if trainer.train_dataloader is None:
        raise MisconfigurationException(f"{name}: there is no training data to calibrate with; fit first")
    try:
        with untouched_randomness(), quiet(trainer, pl_module):
            yield
    except MisconfigurationException:
        raise
    except Exception as error:
        raise MisconfigurationException(
            f"{name}: ranges of activations are calibrated by training_step in evaluation mode, which failed: {error}"
        ) from error


def _auto(callback: "QuantizeSparse", trainer: Any, pl_module: Any, names: list[str]) -> dict[str, int]:
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{callback.name}: bits='auto' asks training_step for a loss, and under manual optimization that would "
            "step the optimizers; give bits for each glob"
        )
    with untouched_randomness():
        torch.manual_seed(_SEED)
        probe = Probe(pl_module, TrainerBatches(trainer, _SEED), TrainerLoss(trainer))
        probe.model.eval()
        return choose_bits(
            probe,
            names,
            avg_bits=callback.avg_bits,
            max_bytes=callback.max_bytes,
            batches=callback.calibrate_batches,
        )


def _refuse_wild(name: str, found: Candidates) -> None:
    wild = [n for n, m in found.modules.items() if not bool(m.weight.isfinite().all())]  # type: ignore[operator]
    raise_problems([f"{parameter(n)} has NaN or infinity, which no integer stands for" for n in wild], name)


def _warn(name: str, quantizer: Quantizer) -> None:
    if unseen := quantizer.unseen():
        rank_zero_warn(f"{name}: no finite activations came to {', '.join(unseen)}: these stay in float")
    elif quantizer.odd:
        rank_zero_warn(f"{name}: {quantizer.odd} activations with NaN or infinity were not counted in ranges")


def _table(name: str, pl_module: Any, quantizer: Quantizer) -> str:
    """What is quantized, and what is not."""
    modules = modules_of(pl_module)
    rows = []
    for n, layer in quantizer.layers.items():
        weight: Any = modules[n].weight
        places = ", ".join(place for place in (layer.input, layer.output) if place) or "float activations"
        live = int(weight.count_nonzero())
        rows.append(f"  {parameter(n)}  {layer.bits} bits  {live:,} of {weight.numel():,} live  {places}")
    left = [f"  {n}  float: {why}" for n, why in quantizer.left.items()]
    return "\n".join([f"{name}: {len(rows)} layers are quantized", *rows, *left])


def warn_of_float_best(name: str, trainer: Any) -> None:
    """Say that the best model may be one that has not met the grid yet."""
    if found := watchers(trainer):
        kinds = ", ".join(sorted({type(each).__name__ for each in found}))
        rank_zero_warn(
            f"{name}: the best model that {kinds} finds may be one from before quantized training; "
            "reset_monitors=True lets them begin anew there"
        )
