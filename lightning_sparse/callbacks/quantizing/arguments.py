"""Arguments of a QuantizeSparse that cannot be right, whatever the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_sparse.core.values import is_number, is_whole, wrong_flags, wrong_globs
from lightning_sparse.quant.grid import BITS

if TYPE_CHECKING:
    from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse

_ACT_BITS = (4, 5, 6, 7, 8)


def problems(callback: "QuantizeSparse") -> list[str]:
    """A sentence for each problem."""
    found = _bits_problems(callback.bits) + _budget_problems(callback)
    if callback.act_bits is not None and not (is_whole(callback.act_bits) and callback.act_bits in _ACT_BITS):
        found.append(f"act_bits must be 4 to 8, or None for activations in float, got {callback.act_bits!r}")
    if not is_whole(callback.calibrate_batches) or callback.calibrate_batches < 1:
        found.append(f"calibrate_batches must be a whole number from 1 on, got {callback.calibrate_batches!r}")
    at = callback.at
    if at is not None and not (is_whole(at) and at >= 0) and not (is_number(at) and 0 < at < 1):
        found.append(f"at must be epochs (a whole number from 0 on) or a share of the run between 0 and 1, got {at!r}")
    if callback.include is not None:
        found += wrong_globs("include", callback.include)
    found += wrong_globs("exclude", callback.exclude) + wrong_flags(callback, "reset_monitors", "restore_rng")
    return found + ([] if isinstance(callback.name, str) else [f"name must be str, got {callback.name!r}"])


def _bits_problems(bits: Any) -> list[str]:
    if bits == "auto":
        return []
    if isinstance(bits, Mapping):
        wrong = {glob: value for glob, value in bits.items() if value is not None and not _is_bits(value)}
        found = [f"bits={{{glob!r}: {value!r}}} must be 2 to 8, or None for float" for glob, value in wrong.items()]
        if any(not isinstance(glob, str) for glob in bits):
            found.append(f"bits must be by glob, got {list(bits)}")
        return found or ([] if bits else ["bits={} names nothing; give a number for all, or globs"])
    return [] if _is_bits(bits) else [f"bits must be 2 to 8, a number for each glob, or 'auto', got {bits!r}"]


def _is_bits(value: Any) -> bool:
    return is_whole(value) and value in BITS


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
