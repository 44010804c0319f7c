"""What leaves training: a compressed checkpoint, and a report of what came of it.

Example:
    >>> import tempfile
    >>> from torch import nn
    >>> from lightning_sparse import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export.save_packed(nn.Linear(3, 2), f"{folder}/net.safetensors")
    ...     sorted(export.load_packed(f"{folder}/net.safetensors"))
    ['bias', 'weight']
"""

from lightning_sparse.export.answers import Agreement
from lightning_sparse.export.conversion import convert
from lightning_sparse.export.executorch_file import ExecutorchReport, to_executorch
from lightning_sparse.export.onnx_file import OnnxReport, agreement, to_onnx
from lightning_sparse.export.packed import load_packed, save_packed
from lightning_sparse.export.reports.build import report
from lightning_sparse.export.reports.report import Report
from lightning_sparse.export.runtimes import session
from lightning_sparse.export.semi_structured import SemiStructured, to_semi_structured
from lightning_sparse.export.sizes import PackedReport, PackedTensor
from lightning_sparse.quant.calibrate import calibrate

__all__ = [
    "Agreement",
    "ExecutorchReport",
    "OnnxReport",
    "PackedReport",
    "PackedTensor",
    "Report",
    "SemiStructured",
    "agreement",
    "calibrate",
    "convert",
    "load_packed",
    "report",
    "save_packed",
    "session",
    "to_executorch",
    "to_onnx",
    "to_semi_structured",
]
