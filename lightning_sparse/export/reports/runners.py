"""A model in each runtime, ready to be called."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_sparse.core.flops import call
from lightning_sparse.export.answers import TOLERANCE, require
from lightning_sparse.export.copies import plain_copy
from lightning_sparse.export.extras import need
from lightning_sparse.export.onnx_file import compared, to_onnx
from lightning_sparse.export.reports.subject import Subject
from lightning_sparse.export.reports.timing import Run
from lightning_sparse.export.runtimes import Runtime, Session, session

DEFAULT = ("eager", "onnxruntime", "openvino")
PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("openvino", "openvino")}


def missing(runtime: str) -> str:
    """What to install; "" if nothing."""
    if runtime not in PACKAGES:
        return ""
    extra, package = PACKAGES[runtime]
    try:
        need("onnx", "onnx", "onnxscript")
        need(extra, package)
    except ImportError as error:
        return str(error)
    return ""


class Runners:
    """Makes one model callable, by any runtime.

    Args:
        subject: the model.
        batches: inputs, by the number of samples.
        threads: to compute with.
        folder: for the files of runtimes.
    """

    def __init__(self, subject: Subject, batches: Mapping[int, Any], threads: int, folder: Path) -> None:
        self.subject, self.batches, self.threads, self.folder = subject, batches, threads, folder
        self._files: dict[int | None, Path] = {}

    def prepare(self, runtime: str) -> dict[int, Run]:
        """Calls, by the number of samples; the answers of other runtimes are compared with PyTorch's.

        Raises:
            Exception: whatever the runtime raises.
        """
        module = self.subject.module
        assert module is not None, "checked before"
        if runtime in ("onnxruntime", "openvino"):
            return self._sessions(runtime)  # type: ignore[arg-type]
        if runtime == "compile":
            return self._compiled(module)
        return {samples: _in_torch(module, inputs) for samples, inputs in self.batches.items()}

    def _compiled(self, module: nn.Module) -> dict[int, Run]:
        """Compiled here, for each batch size; the compiler's own warnings are not the user's."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.compile(plain_copy(module, "report"), dynamic=False)  # type: ignore[assignment]
            runs = {samples: _in_torch(module, inputs) for samples, inputs in self.batches.items()}
            for run in runs.values():
                run()
        return runs

    def _sessions(self, runtime: Runtime) -> dict[int, Run]:
        """Of one file of any batch size; where the model fixes it, of a file for each."""
        assert self.subject.module is not None
        try:
            loaded = session(self._file(None), runtime, threads=self.threads)
            for inputs in self.batches.values():
                loaded(inputs)
            sessions = dict.fromkeys(self.batches, loaded)
        except Exception:
            files = {samples: self._file(samples) for samples in self.batches}
            sessions = {samples: session(path, runtime, threads=self.threads) for samples, path in files.items()}
        for samples, inputs in self.batches.items():
            _check(self.subject.module, sessions[samples], inputs, runtime)
        return {samples: _loaded(sessions[samples], inputs) for samples, inputs in self.batches.items()}

    def _file(self, samples: int | None) -> Path:
        """An ONNX file of so many samples, or of any number; written once."""
        if samples not in self._files:
            assert self.subject.module is not None
            path = self.folder / f"{len(list(self.folder.iterdir()))}.onnx"
            inputs = next(iter(self.batches.values())) if samples is None else self.batches[samples]
            to_onnx(self.subject.module, path, inputs, "float", check=(), dynamic_batch=samples is None)
            self._files[samples] = path
        return self._files[samples]


def _check(module: nn.Module, run: Session, inputs: Any, runtime: str) -> None:
    """Refuse a runtime that computes something else, as :func:`~lightning_sparse.export.to_onnx` does.

    Raises:
        ValueError: if it does.
    """
    require(compared(module, run, inputs, runtime), TOLERANCE, "report")


def _in_torch(module: Any, inputs: Any) -> Run:
    def run() -> None:
        with torch.no_grad():
            call(module, inputs)

    return run


def _loaded(loaded: Session, inputs: Any) -> Run:
    return lambda: loaded(inputs)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside.

    Example:
        >>> before = torch.get_num_threads()
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
