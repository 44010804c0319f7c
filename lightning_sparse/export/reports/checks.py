"""Whether a report can be made of what was given."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import batch_size
from lightning_sparse.core.values import is_whole
from lightning_sparse.export.onnx_file import is_converted
from lightning_sparse.export.reports.rows import RUNTIMES
from lightning_sparse.export.reports.subject import quantized_name
from lightning_sparse.quant.quantization import Quantization

_MOST_SAMPLES = 2**20


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        batch_sizes: samples in a call.
        runtimes: by name; None for those that are installed.
        rounds: turns of each call.
        threads: to compute with.

    Example:
        >>> Options([0]).problems()
        ['batch_sizes must be a list of different whole numbers from 1 to 1,048,576, got [0]']
    """

    batch_sizes: Sequence[int] = (1, 32)
    runtimes: Sequence[str] | None = None
    rounds: int = 7
    threads: int = 1

    def problems(self) -> list[str]:
        """What is wrong: a sentence each."""
        found, sizes, names = [], self.batch_sizes, self.runtimes
        fine = _listed(sizes) and all(is_whole(n) and 1 <= n <= _MOST_SAMPLES for n in sizes)
        if not fine or not len(set(sizes)) == len(sizes) > 0:
            text = f"a list of different whole numbers from 1 to {_MOST_SAMPLES:,}"
            found.append(f"batch_sizes must be {text}, got {sizes!r}")
        if names is not None and not (_listed(names) and all(isinstance(n, str) and n in RUNTIMES for n in names)):
            found.append(f"runtimes must be a list of {', '.join(RUNTIMES)}, got {names!r}")
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if not is_whole(value) or value < 1:
                found.append(f"{name} must be a whole number from 1, got {value!r}")
        return found


def refuse(variants: Any, inputs: Any, evaluate: Any, metric: Any, known: Any, options: Options, path: Any) -> None:
    """Stop before anything is measured.

    Raises:
        ValueError: with everything that is wrong.
    """
    problems = _of_variants(variants)
    problems += _of_quantizations(known, variants if isinstance(variants, Mapping) else {})
    if batch_size(inputs) is None:
        problems.append("example_inputs has no tensor with a first dimension; give what the models are called with")
    if evaluate is not None and not callable(evaluate):
        problems.append(f"evaluate must be a function of a model, got {evaluate!r}")
    if not isinstance(metric, str) or not metric or not metric.isprintable():
        problems.append(f"metric must be the name of what evaluate returns, got {metric!r}")
    problems += options.problems()
    if path is not None and not isinstance(path, str | os.PathLike):
        problems.append(f"path must be that of a folder, got {path!r}")
    elif path is not None and Path(path).exists() and not Path(path).is_dir():
        problems.append(f"path={str(path)!r} is a file; give the name of a folder")
    raise_problems(problems, "report")


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _of_variants(variants: Any) -> list[str]:
    if not isinstance(variants, Mapping) or not variants:
        return [f"variants must be models by name, at least one, got {variants!r}"]
    problems = []
    for name, module in variants.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            problems.append(f"variants has the name {name!r}; give one that can be printed")
        if not isinstance(module, nn.Module):
            problems.append(f"variants[{name!r}] must be a torch.nn.Module, got {type(module).__name__}")
        elif is_converted(module):
            way_out = f"give what it was made of, and quantizations={{{name!r}: ...}}"
            problems.append(f"variants[{name!r}] was converted to integers already; {way_out}")
    return problems


def _of_quantizations(known: Any, variants: Mapping[Any, Any]) -> list[str]:
    if not isinstance(known, Mapping):
        return [f"quantizations must be a mapping of names of variants, got {known!r}"]
    problems = []
    for name, one in known.items():
        if name not in variants:
            problems.append(f"quantizations[{name!r}] is of no variant; there are {', '.join(map(str, variants))}")
        if not isinstance(one, Quantization) or not one.layers:
            problems.append(f"quantizations[{name!r}] must be a Quantization with layers, got {one!r:.60}")
        elif quantized_name(str(name), one) in variants:
            problems.append(f"variants has {quantized_name(str(name), one)!r}, the row of {name!r} as integers")
    return problems
