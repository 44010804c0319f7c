"""Arguments of a QuantizeSparse that cannot be right, whatever the model."""

from typing import TYPE_CHECKING

from lightning_sparse.core.values import is_number, is_whole, wrong_flags, wrong_globs
from lightning_sparse.quant.options import wrong_act_bits, wrong_bits

if TYPE_CHECKING:
    from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse


def problems(callback: "QuantizeSparse") -> list[str]:
    """A sentence for each problem."""
    found = [] if callback.bits == "auto" else wrong_bits(callback.bits, ", a number for each glob, or 'auto'")
    found += wrong_act_bits(callback.act_bits) + _budget_problems(callback)
    if not is_whole(callback.calibrate_batches) or callback.calibrate_batches < 1:
        found.append(f"calibrate_batches must be a whole number from 1 on, got {callback.calibrate_batches!r}")
    at = callback.at
    if at is not None and not (is_whole(at) and at >= 0) and not (is_number(at) and 0 < at < 1):
        found.append(f"at must be epochs (a whole number from 0 on) or a share of the run between 0 and 1, got {at!r}")
    if callback.include is not None:
        found += wrong_globs("include", callback.include)
    found += wrong_globs("exclude", callback.exclude) + wrong_flags(callback, "reset_monitors", "restore_rng")
    return found + ([] if isinstance(callback.name, str) else [f"name must be str, got {callback.name!r}"])


def _budget_problems(callback: "QuantizeSparse") -> list[str]:
    given = {"avg_bits": callback.avg_bits, "max_bytes": callback.max_bytes}
    named = [name for name, value in given.items() if value is not None]
    if callback.bits != "auto":
        return [f"{name} is for bits='auto': bits={callback.bits!r} says all" for name in named]
    if len(named) != 1:
        return ["bits='auto' needs a budget: give avg_bits, or max_bytes" + (", not both" if named else "")]
    if callback.max_bytes is not None:
        fine = is_whole(callback.max_bytes) and callback.max_bytes >= 1
        return [] if fine else [f"max_bytes must be a whole number from 1 on, got {callback.max_bytes!r}"]
    fine = is_number(callback.avg_bits) and 2 <= float(callback.avg_bits or 0) <= 8
    return [] if fine else [f"avg_bits must be between 2 and 8, got {callback.avg_bits!r}"]
