"""The kernels are compiled on first use, once for a machine, by the C++ compiler that is there: some ten seconds."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        with locked(found.with_suffix(".lock")):
            if not found.exists():  # another process may have been faster
                compile_to(found, compiler, isa)
    if hasattr(os, "getuid") and (owner := found.stat().st_uid) not in (os.getuid(), 0):  # else it runs their code
        raise BuildError(f"{found} belongs to user {owner}; set LIGHTNING_SPARSE_CACHE to a folder of your own")
    return found


def levels() -> tuple[str, ...]:
    """The instruction sets of this processor that there are kernels for, the widest first.

    Example:
        >>> levels()[-1]
        'portable'
    """
    widest = {"AVX512": 2, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return tuple(PATHS)[widest::-1]


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


def find_compiler() -> list[str]:
    """The words of ``$CXX``, else the first of g++, clang++ and c++.

    Raises:
        BuildError: if there is none.
    """
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        words = shlex.split(name)  # "ccache g++"
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    raise BuildError("no C++ compiler was found; install g++ or clang++, or set CXX to one")


def compile_to(target: Path, compiler: Sequence[str], isa: str) -> None:
    """Compile and link the kernels of one instruction set; the file appears complete or not at all.

    Raises:
        BuildError: with the compiler's message, or if the folder cannot be written to.
    """
    prefix = f"{target.stem}-build-"
    for left in target.parent.glob(f"{prefix}*"):  # by a process that was killed: whoever builds holds the lock
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as work:
            try:
                result = _build(Path(work), [*compiler, *FLAGS, "-fopenmp", *PATHS[isa]])
            except BuildError:  # without OpenMP: one thread
                result = _build(Path(work), [*compiler, *FLAGS, *PATHS[isa]])
            os.replace(result, target)
    except OSError as error:
        raise BuildError(
            f"kernels cannot be written to {target.parent} ({error}); set LIGHTNING_SPARSE_CACHE to a folder where "
            "they can"
        ) from error


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


def _fingerprint(compiler: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    try:
        asked = subprocess.run([*compiler, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} cannot be run: {error}") from error
    digest.update(repr((FLAGS, PATHS, compiler, asked.stdout, platform.machine(), sys.platform)).encode())
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process holds this lock.

    Where there is no such lock, or none can be had, two may do the same work at once: both put whole files in place.
    """
    with ExitStack() as held:
        try:
            import fcntl

            fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
