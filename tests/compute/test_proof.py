"""Wider kernels are used only after they agreed with the portable ones on this machine, in a process of their own."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sparse.compute import SparseLinear, build, proof, verdict
from lightning_sparse.compute import native as loading

COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
TYPES = {"i": "int", "p": "void*"}


def library(path, isa, body="", only=None):
    """Kernels that write nothing; all, or only one of them, do `body`, a statement that sees the arguments a0, a1..."""
    lines = ["#include <string.h>", "#include <unistd.h>", "#include <signal.h>"]
    for name, letters in proof.SIGNATURES.items():
        arguments = ", ".join(f"{TYPES[letter]} a{k}" for k, letter in enumerate(letters))
        own = body if only in (None, name) else ""
        lines.append(f'extern "C" int {name}_{isa}({arguments}) {{ {own} return 0; }}')
    source = path.with_suffix(".cpp")
    source.write_text("\n".join(lines))
    flags = ["-shared", "-fPIC", "-w", "-o", str(path), str(source)]
    subprocess.run([COMPILER, *flags], check=True)
    return path


@pytest.fixture
def level(tmp_path, monkeypatch):
    """Makes the widest kernels of this "processor": avx2, with a body; portable ones do nothing."""
    monkeypatch.delenv(loading.VARIABLE, raising=False)
    portable = library(tmp_path / "portable.so", "portable")
    libraries = {"portable": portable}
    monkeypatch.setattr(loading, "levels", lambda: ("avx2", "portable"))
    monkeypatch.setattr(loading, "library", libraries.__getitem__)

    def make(body, only=None):
        libraries["avx2"] = library(tmp_path / "wide.so", "avx2", body, only)
        return libraries["avx2"]

    def forget():
        loading._automatic.cache_clear()
        loading.kernels.cache_clear()

    forget()
    yield make
    forget()


def verdicts(folder):
    return [path.read_text() for path in folder.glob("*.verdict")]


def test_kernels_that_agree_are_used_and_tried_once(level, tmp_path, monkeypatch, caplog):
    level("")
    assert loading.native().isa == "avx2"
    assert verdicts(tmp_path) == [""]
    loading._automatic.cache_clear()
    loading.kernels.cache_clear()
    monkeypatch.setattr(verdict, "_tried", lambda *_: pytest.fail("tried again"))
    assert loading.native().isa == "avx2"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("body", "reason", "seconds"),
    [
        ("raise(SIGILL);", "died of SIGILL", 60),
        ("*(volatile int*)0 = 1;", "died of SIGSEGV", 60),
        ("pause();", "had not ended after 0.5 seconds", 0.5),
        ("_exit(0);", "failed with status 0", 60),
        ("return 1;", "failed with status 1: ", 60),
    ],
)
def test_kernels_that_fail_are_not_used_and_it_is_said_once(level, monkeypatch, caplog, body, reason, seconds):
    level(body)
    monkeypatch.setattr(verdict, "SECONDS", seconds)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert loading.native().isa == "portable"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Sparse layers use their portable kernels, not wider ones. avx2: ")
    assert reason in caplog.text


WRONG = {  # each result of each kernel: its argument
    "linear_forward": {"output": 11},
    "linear_backward": {"gradient of the input": 15, "gradient of the values": 16, "gradient of the bias": 17},
    "conv_forward": {"output": 9},
    "conv_backward": {"gradient of the input": 12, "gradient of the values": 13, "gradient of the bias": 14},
}


@pytest.mark.parametrize(
    ("kernel", "result", "argument"), [(kernel, *result) for kernel, of in WRONG.items() for result in of.items()]
)
def test_a_wrong_number_of_one_type_is_found(level, tmp_path, kernel, result, argument):
    level(f"if (a0 == 1) memset(a{argument}, 0x40, 8);", kernel)
    with pytest.raises(loading.KernelError) as caught, loading.using("avx2"):
        loading.native()
    assert f"{result}, number 0" in str(caught.value)
    assert " kind 1, " in str(caught.value)
    assert len(verdicts(tmp_path)) == 1


def test_a_number_behind_the_end_is_found(level):
    level("if (a0 == 0) memset((float*)a11 + a2 * a3 + 3, 0, 4);", "linear_forward")
    with pytest.raises(loading.KernelError, match="output, 4 behind the end"), loading.using("avx2"):
        loading.native()


def test_a_failure_that_says_nothing_of_the_kernels_is_not_kept(level, tmp_path, monkeypatch, caplog):
    level("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert loading.native().isa == "portable"
    assert "no process could be started" in caplog.text
    assert verdicts(tmp_path) == []
    monkeypatch.undo()
    assert verdict.verdict(tmp_path / "wide.so", "avx2", tmp_path / "portable.so") == ""


def test_a_program_that_is_no_python_starts_nothing(level, monkeypatch, caplog):
    """A frozen program would be started a second time."""
    level("")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    assert loading.native().isa == "portable"
    assert "no Python program" in caplog.text


def test_another_library_or_processor_is_tried_anew(level, tmp_path, monkeypatch):
    wide, portable = level(""), tmp_path / "portable.so"
    tried = []
    monkeypatch.setattr(verdict, "_tried", lambda *_: (tried.append(1), ("", True))[1])
    for _ in range(2):
        verdict.verdict(wide, "avx2", portable)
    assert len(tried) == 1
    monkeypatch.setattr(verdict, "_processor", lambda: ["model name: another"])
    verdict.verdict(wide, "avx2", portable)
    assert len(tried) == 2
    level("a0 = 0;")
    wide.write_bytes(wide.read_bytes() + b"\0")
    verdict.verdict(wide, "avx2", portable)
    assert len(tried) == 3


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs what Linux says of its processors")
def test_the_processor_is_known_by_what_does_not_change():
    first = verdict._processor()
    assert any("flags" in line or "Features" in line for line in first)
    assert not any(line.lower().startswith(("cpu mhz", "processor")) for line in first)


@pytest.mark.parametrize("name", ["portable", "avx2"])
def test_the_variable_chooses(level, monkeypatch, name):
    level("")
    monkeypatch.setenv(loading.VARIABLE, name)
    assert loading.native().isa == name


def test_the_variable_turns_kernels_off(level, monkeypatch):
    monkeypatch.setenv(loading.VARIABLE, "torch")
    dense = nn.Linear(5, 3)
    assert loading.native() is None
    torch.testing.assert_close(SparseLinear.from_dense(dense)(torch.ones(5)), dense(torch.ones(5)))


def test_a_choice_that_fails_its_trial_is_an_error(level, monkeypatch):
    level("raise(SIGILL);")
    monkeypatch.setenv(loading.VARIABLE, "avx2")
    with pytest.raises(loading.KernelError, match=r"avx2 kernels.*SIGILL.*LIGHTNING_SPARSE_SIMD=portable or torch"):
        SparseLinear.from_dense(nn.Linear(5, 3))(torch.ones(5))


def test_a_choice_that_does_not_exist_is_an_error(level, monkeypatch):
    monkeypatch.setenv(loading.VARIABLE, "sse9")
    with pytest.raises(ValueError, match="must be one of portable, avx2, avx512, torch; got 'sse9'"):
        loading.native()


@pytest.mark.skipif(os.environ.get("CXX") is not None, reason="with a compiler of one's own nothing is promised")
def test_the_kernels_of_this_machine_prove_themselves():
    """The real ones: every level that torch says this processor has."""
    for isa in build.levels():
        assert isa == "portable" or verdict.verdict(build.library(isa), isa, build.library("portable")) == "", isa


def test_a_trial_reaches_all_kernels_types_and_widths():
    cases = list(proof.cases())
    seen = {(case.kernel, case.integers[0]) for case in cases}
    assert seen == {(kernel, kind) for kernel in proof.SIGNATURES for kind in range(3)}
    assert {case.integers[1] for case in cases} == {1, 2}
    widths = {case.integers[2] for case in cases if case.kernel == "linear_forward"}
    assert widths >= {1, 8, 16, 64}  # of samples, and more of them than one panel holds
    assert max(widths) > 64
    live = [len(case.inputs[1]) for case in cases if case.kernel == "linear_forward"]
    assert min(live) == 1  # no live entry at all
    assert all(isinstance(case.inputs[0], ctypes.Array) for case in cases)
