"""``lightning-sparse report``: a checkpoint, measured with the model and the data of a LightningCLI's config."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_sparse.callbacks.load import read_checkpoint, take_checkpoint
from lightning_sparse.callbacks.reporting.made import made_report
from lightning_sparse.callbacks.reporting.parts import part_name, quantization_of
from lightning_sparse.callbacks.reporting.validate import Validator
from lightning_sparse.channels.recipe import recipe_in
from lightning_sparse.export.copies import plain_copy
from lightning_sparse.export.reports.checks import Options
from lightning_sparse.export.reports.report import Report
from lightning_sparse.export.reports.rows import RUNTIMES
from lightning_sparse.quant.quantization import Quantization

_HERE = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}
_ABOUT = """
A checkpoint that was trained sparse, slim or quantized, in one table: accuracy, parameters, bytes on disk, FLOPs, and
latency on the CPU of this machine in PyTorch, ONNX Runtime and OpenVINO, as far as these are installed.

Model and data are those of the config that `lightning-sparse fit` was given, or has saved beside its checkpoints.
"""
_MORE = """
All other options are those of `lightning-sparse fit`, and override the config: --model.init_args.width 32

  lightning-sparse report --config config.yaml --ckpt_path last.ckpt --dense dense.ckpt
"""


def main(arguments: Sequence[str]) -> Report:
    """Parse, measure, write and print.

    Args:
        arguments: what stands behind ``report`` on the command line.

    Raises:
        SystemExit: on wrong arguments, all at once; after ``--help``.
    """
    parser = make_parser()
    given, rest = parser.parse_known_args(list(arguments))
    options = Options(tuple(given.batch_sizes), given.runtimes, given.rounds, given.threads)
    if problems := _problems(given, options):
        parser.error("\n  ".join(["", *problems]) if len(problems) > 1 else problems[0])
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # LightningCLI's own

    try:
        found = _report(given, rest, options)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        parser.error(str(error))
    found.save(given.out)
    sys.stdout.write(f"{found}\nwritten to {given.out}\n")
    return found


def make_parser() -> argparse.ArgumentParser:
    """Of our own options; those that it does not know are LightningCLI's."""
    parser = argparse.ArgumentParser(
        "lightning-sparse report",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--config", "-c", action="append", default=[], metavar="YAML", help="of the model and the data; may be repeated"
    )
    add("--ckpt_path", metavar="CKPT", help="what was trained; also with channels cut, also quantized")
    add("--dense", metavar="CKPT", help="a dense model of the same class, to compare with")
    add("--out", default="report", metavar="FOLDER", help="for report.md, report.json, report.html (default: report)")
    add("--batch_sizes", type=int, nargs="+", default=[1, 32], metavar="N", help="samples in a timed call (1 32)")
    names = ", ".join(RUNTIMES)
    add("--runtimes", nargs="+", metavar="NAME", help=f"of {names} (default: installed ones without compile)")
    add("--metric", metavar="NAME", help="what to show of what validation_step logs (default: an accuracy, if any)")
    add("--part", metavar="NAME", help="what is exported, where the model has no forward (default: its only part)")
    add("--rounds", type=int, default=7, metavar="N", help="turns of each timed call (7)")
    add("--threads", type=int, default=1, metavar="N", help="to compute with (1)")
    return parser


def _problems(given: argparse.Namespace, options: Options) -> list[str]:
    """What can be seen before anything is loaded."""
    problems = [] if given.ckpt_path else ["--ckpt_path is missing: the checkpoint of what was trained"]
    files = [("--config", path) for path in given.config]
    files += [("--ckpt_path", given.ckpt_path), ("--dense", given.dense)]
    problems += [f"{option} {path} is no file" for option, path in files if path and not Path(path).is_file()]
    if Path(given.out).exists() and not Path(given.out).is_dir():
        problems.append(f"--out {given.out} is a file; give the name of a folder")
    return problems + [f"--{problem}" for problem in options.problems()]


def _report(given: argparse.Namespace, rest: Sequence[str], options: Options) -> Report:
    checkpoint = read_checkpoint(given.ckpt_path)
    dense = None if given.dense is None else read_checkpoint(given.dense)
    configs = [f"--config={path}" for path in given.config]
    here = [f"--trainer.{name}={value}" for name, value in _HERE.items()]
    model, data, limit = _from_config([*configs, *here, "--ckpt_path=null", *rest])
    if callable(build := getattr(model, "configure_model", None)):
        build()
    take_checkpoint(model, checkpoint)
    part = part_name(model, given.part)
    validator = Validator(model, part, {} if data is None else {"datamodule": data}, metric=given.metric, limit=limit)
    given_inputs = getattr(model, "example_input_array", None)
    inputs = _first_input(validator) if given_inputs is None else given_inputs
    return made_report(
        model,
        part,
        inputs,
        recipe=recipe_in(checkpoint),
        quantization=quantization_of(_quantizations(checkpoint), part),
        dense=dense,
        validator=validator,
        options=options,
    )


def _first_input(validator: Validator) -> Any:
    """Of the first validation batch, what the model's ``forward`` takes."""
    validator.run(plain_copy(validator.module, "report"), 1)
    batch = validator.first
    if batch is None:
        raise ValueError(
            "there is no validation data to take an example input from; give the model example_input_array"
        )
    return batch[0] if isinstance(batch, list | tuple) else batch


def _quantizations(checkpoint: Mapping[str, Any]) -> list[Quantization]:
    """What QuantizeSparse callbacks, whatever they were called, have left in a checkpoint."""
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, Mapping)]
    return [Quantization.from_state(state["quantization"]) for state in states if "quantization" in state]


def _from_config(arguments: Sequence[str]) -> tuple[Any, Any, Any]:
    """Model, data and ``limit_val_batches`` of what LightningCLI makes of these."""
    from lightning.pytorch.cli import LightningCLI

    class Parts(LightningCLI):
        def fit(self, model: Any, **others: Any) -> None:
            """Nothing: only what a fit would be called with is wanted."""

    with _no_arguments():
        made = Parts(args=["fit", *arguments], save_config_callback=None)
    return made.model, made.datamodule, made.trainer.limit_val_batches


@contextmanager
def _no_arguments() -> Iterator[None]:
    """LightningCLI warns where it is given arguments beside those of the process."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before
