"""What these tests need before anything imports Lightning, and the runs that they share."""

import importlib
import importlib.util
import sys

import pytest
import torch


def declare_torchvision() -> None:
    """Let torchvision be imported where its compiled part does not fit torch.

    The only build at hand beside the CPU build of torch is for CUDA. Without its compiled part the operators that it
    registers fakes for are missing, so importing it fails, and with it torchmetrics and Lightning, which import it
    where it is installed. Two declarations cure that; boxes are not suppressed then, all else works.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")  # it must live as long as the process
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._torchvision_is_declared = declared


declare_torchvision()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The runs of a case by its name; each happens once."""
    from modules.runs import Runs

    kept = {}

    def of(case):
        if case.name not in kept:
            kept[case.name] = Runs(case, tmp_path_factory.mktemp(case.name))
        return kept[case.name]

    return of
