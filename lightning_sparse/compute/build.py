"""The kernels are compiled on first use, once for a machine, by the C++ compiler that is there: some five seconds."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
KERNELS = ("linear.cpp", "conv.cpp")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fvisibility=default", "-Wno-psabi")
PATHS = {
    "portable": ("-DISA=portable", "-DLANES=4"),
    "avx2": ("-DISA=avx2", "-DLANES=8", "-mavx2", "-mfma"),
    "avx512": (
        *("-DISA=avx512", "-DLANES=16", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
        "-mprefer-vector-width=512",
    ),
}
SECONDS = 300  # that a compiler may take


class BuildError(RuntimeError):
    """Why there are no compiled kernels; the message says what to do about it."""


def best() -> str:
    """The widest instruction set of this processor that there are kernels for, as torch sees it.

    Example:
        >>> best() in PATHS
        True
    """
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")


def library(isa: str) -> Path:
    """The file of the compiled kernels for an instruction set, compiled now if it is not there yet.

    It is kept in ``$LIGHTNING_SPARSE_CACHE``, else in ``lightning_sparse`` of the user's cache directory, under a name
    that stands for sources, flags, compiler and machine.

    Raises:
        BuildError: without a compiler, or when it fails.
    """
    compiler = find_compiler()
    found = cache() / f"kernels-{isa}-{_fingerprint(compiler)}.so"
    if not found.exists():
        with _locked(found.with_suffix(".lock")):
            if not found.exists():  # another process may have been faster
                compile_to(found, compiler, isa)
    return found


def cache() -> Path:
    """The directory that compiled kernels are kept in; made if it is not there."""
    own = os.environ.get("LIGHTNING_SPARSE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(own) if own else home / "lightning_sparse"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{directory} cannot be made ({error}); set LIGHTNING_SPARSE_CACHE to one that can") from error
    return directory


def find_compiler() -> str:
    """``$CXX``, else the first of g++, clang++ and c++.

    Raises:
        BuildError: if there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX to one")


def compile_to(target: Path, compiler: str, isa: str) -> None:
    """Compile and link the kernels of one instruction set; the file appears complete or not at all.

    Raises:
        BuildError: with the compiler's message.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        try:
            result = _build(Path(work), [compiler, *FLAGS, "-fopenmp", *PATHS[isa]])
        except BuildError:  # without OpenMP: one thread
            result = _build(Path(work), [compiler, *FLAGS, *PATHS[isa]])
        os.replace(result, target)


def _build(work: Path, command: Sequence[str]) -> Path:
    objects = [work / f"{source}.o" for source in KERNELS]
    _run_all([[*command, "-c", str(SOURCES / k), "-o", str(o)] for k, o in zip(KERNELS, objects, strict=True)])
    result = work / "kernels.so"
    _run_all([[*command, "-shared", *map(str, objects), "-o", str(result)]])
    return result


def _run_all(jobs: Sequence[Sequence[str]]) -> None:
    """Commands at the same time; all have ended when it returns or raises."""
    running = [(job[0], _start(job)) for job in jobs]
    problems = [why for name, process in running if (why := _ended(name, process))]
    if problems:
        raise BuildError(problems[0])


def _ended(name: str, process: "subprocess.Popen[str]") -> str:
    """Wait for a command; why it failed, or nothing."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"{name} took longer than {SECONDS} seconds"
    return f"{name} failed:\n{output[-2000:]}" if process.returncode else ""


def _start(job: Sequence[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BuildError(f"{job[0]} cannot be run: {error}") from error


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    digest.update(repr((FLAGS, PATHS, compiler, version, platform.machine(), sys.platform)).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such lock here: two processes may compile at once, and both put a whole file in place
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
