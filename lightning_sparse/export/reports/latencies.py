"""The latencies of all models of a report, in all runtimes."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sparse.export.reports.checks import Options
from lightning_sparse.export.reports.notes import Notes
from lightning_sparse.export.reports.rows import RUNTIMES, Latency
from lightning_sparse.export.reports.runners import Runners, torch_threads
from lightning_sparse.export.reports.subject import Subject, batched
from lightning_sparse.export.reports.timing import Run, Timing, in_turns

Key = tuple[str, str, int]  # row, runtime, samples


def latencies(
    found: Sequence[Subject],
    inputs: Any,
    runtimes: Sequence[str],
    absent: Mapping[str, str],
    options: Options,
    notes: Notes,
) -> dict[str, tuple[Latency, ...]]:
    """By row, in the order of columns: a runtime after the other, each with all batch sizes.

    Args:
        found: the models.
        inputs: that they are called with.
        runtimes: to measure in.
        absent: those of them that are not installed.
        options: how to measure.
        notes: told of what cannot be.
    """
    batches = {samples: batched(inputs, samples) for samples in options.batch_sizes}
    runs, why = dict[Key, Run](), dict[tuple[str, str], str]()
    with tempfile.TemporaryDirectory() as folder, torch_threads(options.threads):
        for subject in found:
            runners = Runners(subject, batches, options.threads, Path(folder))
            for runtime in runtimes:
                if text := _unmeasured(subject, runtime, absent):
                    why[subject.name, runtime] = text
                    continue
                try:
                    runs |= {(subject.name, runtime, n): run for n, run in runners.prepare(runtime).items()}
                except Exception as error:
                    why[subject.name, runtime] = notes.failed(f"{subject.name} in {RUNTIMES[runtime]}", error)
        taken = in_turns(runs, options.rounds)
    keys = [(subject.name, runtime, n) for subject in found for runtime in runtimes for n in batches]
    cells = {key: _cell(key, taken.get(key), why.get(key[:2], ""), notes) for key in keys}
    return {subject.name: tuple(c for key, c in cells.items() if key[0] == subject.name) for subject in found}


def _cell(key: Key, result: Timing | Exception | None, why: str, notes: Notes) -> Latency:
    name, runtime, samples = key
    if isinstance(result, Timing):
        return Latency(runtime, samples, result.wall, result.cpu)
    if result is not None:
        why = notes.failed(f"{name} in {RUNTIMES[runtime]} @{samples}", result)
    return Latency(runtime, samples, why=why)


def _unmeasured(subject: Subject, runtime: str, absent: Mapping[str, str]) -> str:
    """Why this is not even tried; "" where it is."""
    if runtime in absent:
        return "not installed"
    if subject.error is not None:
        return f"failed: {type(subject.error).__name__}"
    if subject.quantization is not None and runtime in ("eager", "compile"):
        return "float only"  # PyTorch would simulate the integers, more slowly than it computes floats
    return ""
