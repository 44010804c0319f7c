"""How large a model is, and how much it computes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_sparse.core.flops import count_flops
from lightning_sparse.core.select import clean
from lightning_sparse.export.packed import save_packed
from lightning_sparse.export.reports.rows import Row
from lightning_sparse.export.reports.subject import Subject
from lightning_sparse.export.sizes import PackedReport
from lightning_sparse.quant.grid import Codes

Failed = Callable[[str, Exception], str]  # where, what; returns a word or two


def weigh(subject: Subject, inputs: Any, failed: Failed) -> Row:
    """A row with everything but latencies and the metric.

    Args:
        subject: whose float weights are looked at, or the integers they become.
        inputs: to count FLOPs with.
        failed: told of what cannot be known.
    """
    model, known, why = subject.weights, subject.quantization, dict[str, str]()
    codes: dict[str, Codes] = {}
    if known is not None:
        try:
            codes = known.codes(model)
        except Exception as error:
            why["bytes"] = failed(f"{subject.name}, its integers", error)
    live = _live(model, codes)
    packed = None
    if not why:
        try:
            packed = _packed(model, codes)
        except Exception as error:
            why["bytes"] = failed(f"{subject.name}, its compressed file", error)
    try:
        flops, live_flops = _flops(model, inputs, live)
    except Exception as error:
        flops = live_flops = None
        why["flops"] = why["live_flops"] = failed(f"{subject.name}, its FLOPs", error)
    return Row(
        subject.name,
        known is not None,
        sum(weight.numel() for weight in model.parameters()),
        sum(live.values()),
        bytes=None if packed is None else packed.bytes,
        bound_bytes=None if packed is None else packed.bound_bytes,
        plain_bytes=_plain(model),
        flops=flops,
        live_flops=live_flops,
        why=why,
    )


def _live(model: nn.Module, codes: dict[str, Codes]) -> dict[str, int]:
    """How many values are not zero, of each parameter, tied ones under their first name."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(clean(name))
    found = {}
    for weight in model.parameters():
        own = names[id(weight)]
        values = next((codes[name].codes for name in own if name in codes), weight)
        found[own[0]] = int(values.count_nonzero())
    return found


def _packed(model: nn.Module, codes: dict[str, Codes]) -> PackedReport:
    with tempfile.TemporaryDirectory() as folder:
        return save_packed(model, Path(folder) / "model.safetensors", codes or None)


def _plain(model: nn.Module) -> int:
    """Bytes of what ``torch.save`` makes of the state dict."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(model.state_dict(), path)
        return path.stat().st_size


def _flops(model: nn.Module, inputs: Any, live: dict[str, int]) -> tuple[float | None, float | None]:
    """All, and those of weights that are not zero; None where no layer is known that multiplies."""
    counted = count_flops(model, inputs)
    if not counted:
        return None, None
    sizes = {clean(name): weight.numel() for name, weight in model.named_parameters()}
    shares = {name: live[name] / sizes[name] if sizes[name] else 0.0 for name in counted}
    return sum(counted.values()), sum(flops * shares[name] for name, flops in counted.items())
