"""A report of what came of a training, when it ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_sparse.callbacks.base import (
    Callback,
    MisconfigurationException,
    rank_zero_info,
    rank_zero_warn,
    without_model,
)
from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner
from lightning_sparse.callbacks.data import example_inputs
from lightning_sparse.callbacks.load import read_checkpoint
from lightning_sparse.callbacks.monitors import watchers
from lightning_sparse.callbacks.quantize_sparse import QuantizeSparse
from lightning_sparse.callbacks.reporting.made import made_report
from lightning_sparse.callbacks.reporting.parts import chosen, part_name, quantization_of
from lightning_sparse.callbacks.reporting.validate import Validator
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.probe import untouched_randomness
from lightning_sparse.core.values import wrong_flags
from lightning_sparse.export.reports.checks import Options
from lightning_sparse.export.reports.notes import first_line
from lightning_sparse.export.reports.report import Report
from lightning_sparse.export.reports.rows import Row


class ExportReport(Callback):
    """Writes a report when a fit ends: accuracy, parameters, bytes on disk, FLOPs and latency of what was trained.

    There is a row for the model; one for its integers, if a QuantizeSparse is in the Trainer; and one for a dense
    model, if ``baseline`` is a checkpoint of it. Latencies are measured on the CPU of rank zero. The run is over by
    then: whatever goes wrong here becomes a warning.

    The metric is what the last validation logged, in the row of what it was logged for, and only if no step came after
    it. With ``validate=True`` each row is validated anew.

    Args:
        dirpath: the folder for report.md, report.json and report.html; None: ``report`` in the logger's folder.
        batch_sizes: samples in a timed call.
        runtimes: of ``"eager"``, ``"compile"``, ``"onnxruntime"``, ``"openvino"``; None for those that are installed,
            without ``compile``.
        metric: by the name it is logged under; None: what a ModelCheckpoint or EarlyStopping monitors, else what is
            called an accuracy or a value of validation.
        validate: whether each row is validated, on the CPU by a Trainer of its own; of one process only.
        baseline: a Lightning checkpoint of a dense model of the same class, to compare with.
        part: the name of what is exported, where the LightningModule has no ``forward``; None: its only part.
        rounds: turns of each timed call.
        threads: that runtimes compute with.
        name: of the callback, in messages.

    Attributes:
        report: of the last fit; None before it ends, and on other ranks.

    Raises:
        ValueError: on arguments that cannot be right, all at once.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = ExportReport(folder, runtimes=["eager"], batch_sizes=[1])
        ...     trainer = Trainer(max_steps=2, callbacks=[report], logger=False, enable_checkpointing=False,
        ...         enable_progress_bar=False, enable_model_summary=False)
        ...     trainer.fit(BoringModel())
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['report.html', 'report.json', 'report.md']
        >>> [(row.name, row.parameters, row.flops) for row in report.report.rows]
        [('trained', 66, 128.0)]
    """

    def __init__(
        self,
        dirpath: str | None = None,
        *,
        batch_sizes: list[int] | tuple[int, ...] = (1, 32),
        runtimes: list[str] | None = None,
        metric: str | None = None,
        validate: bool = False,
        baseline: str | None = None,
        part: str | None = None,
        rounds: int = 7,
        threads: int = 1,
        name: str = "ExportReport",
    ) -> None:
        self.dirpath, self.batch_sizes, self.runtimes, self.metric = dirpath, batch_sizes, runtimes, metric
        self.validate, self.baseline, self.part = validate, baseline, part
        self.rounds, self.threads, self.name = rounds, threads, name
        raise_problems(self._problems(), "ExportReport")
        self.report: Report | None = None
        self._validated: tuple[int, bool] | None = None  # at which step, and whether it was quantized

    @property
    def state_key(self) -> str:
        """Where checkpoints would keep this callback's state."""
        return f"lightning_sparse.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A dense model must be there to be compared with."""
        if stage == "fit" and self.baseline is not None and not Path(self.baseline).is_file():
            raise MisconfigurationException(f"{self.name}: baseline={self.baseline!r} is no file")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Another run."""
        self.report = self._validated = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep in mind what was validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = trainer.global_step, any(each.quantizer is not None for each in _quantizers(trainer))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure and write; all other callbacks have done what they do when training ends."""
        folder = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "report")  # ranks agree on it
        if not trainer.is_global_zero:
            return
        try:
            with untouched_randomness():
                self.report = self._made(trainer, pl_module)
            self.report.save(folder)
            rank_zero_info(f"{self.report}\n{self.name}: written to {folder}")
        except Exception as error:
            rank_zero_warn(f"{self.name}: the report could not be made: {type(error).__name__}: {first_line(error)}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the model's methods."""
        return without_model(self)

    def _problems(self) -> list[str]:
        found = Options(self.batch_sizes, self.runtimes, self.rounds, self.threads).problems()
        texts = {"dirpath": self.dirpath, "metric": self.metric, "baseline": self.baseline, "part": self.part}
        for key, value in texts.items():
            if value is not None and not isinstance(value, str):
                found.append(f"{key} must be a string or None, got {value!r}")
        found += wrong_flags(self, "validate")
        return found + ([] if isinstance(self.name, str) else [f"name must be str, got {self.name!r}"])

    def _made(self, trainer: Any, pl_module: Any) -> Report:
        part = part_name(pl_module, self.part)
        monitored = tuple(each.monitor for each in watchers(trainer))
        pruner = next((each for each in trainer.callbacks if isinstance(each, BNChannelPruner)), None)
        validator, notes = None, list[str]()
        if self.validate and trainer.world_size > 1:
            notes.append("not validated: validate=True is of one process only")
        elif self.validate:
            data = {"dataloaders": trainer.val_dataloaders}
            limit = trainer.limit_val_batches
            validator = Validator(pl_module, part, data, metric=self.metric, monitored=monitored, limit=limit)
        found = made_report(
            pl_module,
            part,
            example_inputs(trainer, pl_module, 0),
            recipe=None if pruner is None else pruner.recipe,
            quantization=quantization_of([each.quantization for each in _quantizers(trainer)], part),
            dense=None if self.baseline is None else read_checkpoint(self.baseline),
            validator=validator,
            options=Options(self.batch_sizes, self.runtimes, self.rounds, self.threads),
        )
        found = replace(found, notes=(*notes, *found.notes))
        return found if validator is not None else self._with_logged(found, trainer, monitored)

    def _with_logged(self, found: Report, trainer: Any, monitored: tuple[str, ...]) -> Report:
        """The metric of the last validation, where it is of the final weights."""
        values = trainer.callback_metrics
        try:
            name = chosen(values, self.metric, monitored)
        except ValueError as error:
            return replace(found, notes=(str(error), *found.notes))
        if name is None:
            return found
        if self._validated is None or self._validated[0] != trainer.global_step:
            note = f"{name}: the last validation was not of the final weights; validate=True makes another"
            return replace(found, metric=name, notes=(note, *found.notes))
        rows = [self._filled(row, float(values[name])) for row in found.rows]
        return replace(found, metric=name, rows=tuple(rows))

    def _filled(self, row: Row, value: float) -> Row:
        assert self._validated is not None
        own = row.name != "dense" and row.quantized == self._validated[1]
        return replace(row, metric=value) if own and value == value else row


def _quantizers(trainer: Any) -> list[QuantizeSparse]:
    return [each for each in trainer.callbacks if isinstance(each, QuantizeSparse)]
