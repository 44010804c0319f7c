"""Making a report: several models are measured side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal

from torch import nn

from lightning_sparse.core.probe import untouched_randomness
from lightning_sparse.core.values import is_number
from lightning_sparse.export.reports.checks import Options, refuse
from lightning_sparse.export.reports.latencies import latencies
from lightning_sparse.export.reports.machine import this_machine
from lightning_sparse.export.reports.notes import Notes
from lightning_sparse.export.reports.report import Report
from lightning_sparse.export.reports.rows import RUNTIMES, Row
from lightning_sparse.export.reports.runners import DEFAULT, PACKAGES, missing
from lightning_sparse.export.reports.subject import Subject, batched, subjects
from lightning_sparse.export.reports.weigh import weigh
from lightning_sparse.quant.quantization import Quantization, remembered

RuntimeName = Literal["eager", "compile", "onnxruntime", "openvino"]


def report(
    variants: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    metric: str = "accuracy",
    quantizations: Mapping[str, Quantization] | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    runtimes: Sequence[RuntimeName] | None = None,
    rounds: int = 7,
    threads: int = 1,
    path: str | PathLike[str] | None = None,
) -> Report:
    """Models side by side: a metric, parameters, bytes on disk, FLOPs, and latency on this machine.

    Each model is copied, on the CPU in float32; nothing of yours is touched. One that was trained with
    :class:`~lightning_sparse.QuantizeSparse`, or is in ``quantizations``, has a second row for what it is as integers.
    What cannot be measured says why in its cell and in the notes, and the report goes on.

    Calls of all models in all runtimes take turns in one process, each once untimed in every round. Medians of wall and
    CPU time are kept. Answers of other runtimes are compared with PyTorch's first.

    Args:
        variants: models by name; the first is what others are compared with.
        example_inputs: what all of them are called with: a tensor, a tuple of arguments or a dict of keyword arguments.
            Real data makes the comparison of answers sharper.
        evaluate: what a model, in evaluation mode on the CPU, is worth; also called with the converted ones.
        metric: what it returns, for the head of its column.
        quantizations: of variants, by their names; None takes what the modules are remembered by.
        batch_sizes: samples in a timed call.
        runtimes: to measure in: ``"eager"``, ``"compile"`` (needs a C++ compiler, takes a minute a model),
            ``"onnxruntime"``, ``"openvino"``; empty for none. None takes those that are installed, without ``compile``.
        rounds: turns of each call.
        threads: that PyTorch and runtimes compute with.
        path: of a folder, where report.md, report.json and report.html are written.

    Raises:
        ValueError: on arguments that cannot be right, all at once, or a model that cannot be copied.

    Example:
        >>> import torch
        >>> dense, sparse = nn.Linear(100, 10), nn.Linear(100, 10)
        >>> with torch.no_grad():
        ...     _ = sparse.weight[:, 5:].zero_()
        >>> found = report({"dense": dense, "sparse": sparse}, torch.randn(4, 100), runtimes=["eager"], rounds=2)
        >>> [(row.name, row.nonzeros, row.flops, row.live_flops) for row in found.rows]
        [('dense', 1010, 2000.0, 2000.0), ('sparse', 60, 2000.0, 100.0)]
        >>> found.rows[1].bytes < found.rows[0].bytes, found.rows[1].latency("eager", 32).wall > 0
        (True, True)
    """
    known, options = _known(variants, quantizations), Options(batch_sizes, runtimes, rounds, threads)
    refuse(variants, example_inputs, evaluate, metric, known, options, path)
    notes = Notes()
    wanted, absent = _wanted(runtimes, notes)
    with untouched_randomness():
        found = subjects(variants, example_inputs, known, notes)
        rows = [weigh(subject, batched(example_inputs, 1), notes.failed) for subject in found]
        timed = latencies(found, example_inputs, wanted, absent, options, notes)
        rows = [replace(row, latencies=timed[row.name]) for row in rows]
        if evaluate is not None:
            rows = [_evaluated(row, subject, evaluate, notes) for row, subject in zip(rows, found, strict=True)]
    if threads == 1:
        notes.busy(cell for row in rows for cell in row.latencies)
    packages = ["torch", *(name for name in wanted if name in PACKAGES and name not in absent)]
    made = Report(tuple(rows), this_machine(threads, packages), metric, tuple(notes.texts))
    if path is not None:
        made.save(path)
    return made


def _known(variants: Any, given: Mapping[str, Quantization] | None) -> Mapping[str, Quantization]:
    if given is not None or not isinstance(variants, Mapping):
        return {} if given is None else given
    found = {n: remembered(module) for n, module in variants.items() if isinstance(module, nn.Module)}
    return {name: known for name, known in found.items() if known is not None}


def _wanted(runtimes: Sequence[str] | None, notes: Notes) -> tuple[list[str], dict[str, str]]:
    """The runtimes that have columns, and those that are not installed; of both kinds the latter only if asked for."""
    wanted = list(dict.fromkeys(DEFAULT if runtimes is None else runtimes))
    absent = {name: text for name in wanted if (text := missing(name))}
    for name, text in absent.items():
        notes.say(f"{RUNTIMES[name]} was not measured: {text}")
    return [name for name in wanted if runtimes is not None or name not in absent], absent


def _evaluated(row: Row, subject: Subject, evaluate: Callable[[nn.Module], float], notes: Notes) -> Row:
    if subject.module is None or subject.error is not None:
        return replace(row, why={**row.why, "metric": f"failed: {type(subject.error).__name__}"})
    try:
        value: Any = evaluate(subject.module)
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float) and not is_number(value):
            notes.say(f"{row.name}: evaluate returned {value}")
            return replace(row, why={**row.why, "metric": str(value)})
        if not is_number(value):
            raise TypeError(f"evaluate must return a number, got {value!r}")
    except Exception as error:
        return replace(row, why={**row.why, "metric": notes.failed(f"{row.name}, evaluated", error)})
    return replace(row, metric=float(value))
