"""Nothing that is read is executed."""

import ast
from pathlib import Path

import pytest
import torch
from helpers import loader, net, saver, trainer

import lightning_sparse
from lightning_sparse import DensityLogger, MaskUpdater, Regularizer, RigL

SOURCES = sorted(Path(lightning_sparse.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "subprocess", "ctypes", "code"}
BUILTINS, METHODS = {"eval", "exec", "compile", "__import__"}, {"system", "popen", "unsafe_load", "import_module"}
LOADS = {"load", "load_from_checkpoint"}


def unsafe(source: str) -> list[str]:
    """What of a module could run what is in a file: line and name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Call):
            builtin, name = getattr(node.func, "id", ""), getattr(node.func, "attr", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            said = {key.arg: getattr(key.value, "value", None) for key in node.keywords}
            if builtin in BUILTINS | METHODS or name in METHODS or "allow_pickle" in said:
                found.append(f"{node.lineno}: {builtin or name}")
            elif name in LOADS and owner in ("torch", "np", "numpy", "yaml") and said.get("weights_only") is not True:
                found.append(f"{node.lineno}: {owner}.{name}")
    return found


ALLOWED = {  # with the reason
    "callbacks/base.py": ": import_module",  # lightning or pytorch_lightning
    "export/extras.py": ": import_module",  # what the extras bring: names that are written in this package
    "compute/build.py": ": import subprocess",  # the C++ compiler, on sources of this package
    "compute/native.py": ": import ctypes",  # what it has made
    "compute/proof.py": ": import ctypes",
    "compute/verdict.py": ": import subprocess",  # the trial of it
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_module_unpickles_or_evaluates(path):
    allowed = ALLOWED.get(path.relative_to(SOURCES[0].parent).as_posix())
    found = [text for text in unsafe(path.read_text()) if allowed is None or not text.endswith(allowed)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "exec(text)",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "os.system('ls')",
        "importlib.import_module(name)",
    ],
)
def test_the_scan_finds(source):
    assert unsafe(source)


def test_the_scan_lets_pass():
    assert unsafe("torch.load(path, weights_only=True)\ntorch.compile(f)\nself.load(rates)\nmodel.eval()") == []


def test_a_checkpoint_of_all_callbacks_loads_without_unpickling_objects(tmp_path):
    callbacks = [Regularizer(), MaskUpdater(RigL(every=2, stop=8), 0.25), DensityLogger(), saver(tmp_path, 4)]
    fit = trainer(callbacks, max_steps=4, enable_checkpointing=True)
    fit.fit(net("adam"), loader())
    stored = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    keys = {f"lightning_sparse.{name}" for name in ("Regularizer", "MaskUpdater", "DensityLogger")}
    assert keys <= set(stored["callbacks"])
