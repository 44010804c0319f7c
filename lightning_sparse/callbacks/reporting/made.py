"""A report of one LightningModule, beside a dense one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_sparse.callbacks.load import take_checkpoint
from lightning_sparse.callbacks.reporting.parts import own_name, part_of
from lightning_sparse.callbacks.reporting.validate import Validator
from lightning_sparse.channels.recipe import Recipe
from lightning_sparse.export.copies import plain_copy
from lightning_sparse.export.reports.build import report
from lightning_sparse.export.reports.checks import Options
from lightning_sparse.export.reports.notes import first_line
from lightning_sparse.export.reports.report import Report
from lightning_sparse.quant.quantization import Quantization


def made_report(
    module: nn.Module,
    part: str,
    inputs: Any,
    *,
    recipe: Recipe | None = None,
    quantization: Quantization | None = None,
    dense: Mapping[str, Any] | None = None,
    validator: Validator | None = None,
    options: Options | None = None,
) -> Report:
    """What was trained, as integers too if it was quantized, and behind a dense model of the same class.

    Args:
        module: the LightningModule.
        part: the name of what is exported of it; "" for all.
        inputs: that the part is called with.
        recipe: of the channels that are out of it; None for none.
        quantization: of the part.
        dense: a checkpoint of the dense model.
        validator: tells the metric.
        options: how to measure.
    """
    how = Options() if options is None else options
    own = part_of(module, part)
    name = own_name(own, cut=recipe is not None and bool(recipe.dense) and recipe.cut)
    variants, notes = {name: own}, list[str]()
    if dense is not None:
        try:
            variants = {"dense": part_of(dense_copy(module, dense, recipe), part), **variants}
        except Exception as error:
            notes.append(f"dense: the checkpoint cannot be loaded: {type(error).__name__}: {first_line(error)}")
    found = report(
        variants,
        inputs,
        evaluate=validator,
        quantizations={} if quantization is None else {name: quantization},
        batch_sizes=how.batch_sizes,
        runtimes=how.runtimes,  # type: ignore[arg-type]  # checked there
        rounds=how.rounds,
        threads=how.threads,
    )
    title = found.metric if validator is None or validator.metric is None else validator.metric
    return replace(found, metric=title, notes=(*notes, *found.notes))


def dense_copy(module: nn.Module, checkpoint: Mapping[str, Any], recipe: Recipe | None) -> nn.Module:
    """A copy of the module with the weights of a checkpoint, and with its shapes."""
    twin = plain_copy(module, "report")
    take_checkpoint(twin, checkpoint, recipe)
    return twin
