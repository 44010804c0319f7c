"""Whether compiled kernels have proved themselves on this machine: tried once, in a process of their own, and kept."""

import hashlib
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_sparse.compute.build import locked
from lightning_sparse.compute.proof import DIFFERS

PROGRAM = Path(__file__).parent / "proof.py"
SECONDS = 120  # that a trial may take; it takes half a second
FAULTS = {signal.SIGILL, signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT} | (
    {signal.SIGBUS} if hasattr(signal, "SIGBUS") else set()
)


def verdict(library: Path, isa: str, portable: Path) -> str:
    """Why the kernels of a library must not be used here; nothing if they agree with the portable ones.

    The answer is kept beside the library, for its content and this processor. What says nothing about the kernels, as
    a process that could not be started, is not kept.

    Args:
        library: compiled kernels.
        isa: their instruction set.
        portable: the portable kernels.
    """
    known = library.with_name(f"{library.stem}-{_key(library, portable)}.verdict")
    if (found := _read(known)) is not None:
        return found
    with locked(known.with_suffix(".lock")):
        if (found := _read(known)) is not None:  # another process may have been faster
            return found
        why, lasting = _tried(library, isa, portable)
        if lasting:
            _write(known, why)
    return why


def _tried(library: Path, isa: str, portable: Path) -> tuple[str, bool]:
    """Why not, or nothing; and whether it would be the same the next time."""
    if not sys.executable or getattr(sys, "frozen", False):
        return "there is no Python program to try them with", False
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(library), isa, str(portable)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"a trial of them had not ended after {SECONDS} seconds", True
    except OSError as error:
        return f"no process could be started to try them: {error}", False
    return _judged(done.returncode, done.stdout.strip(), done.stderr.strip())


def _judged(status: int, said: str, errors: str) -> tuple[str, bool]:
    if status == 0 and said == "proved":
        return "", True
    if status == DIFFERS:
        return f"a trial found another result than that of the portable kernels: {said}", True
    if -status in set(signal.Signals):
        name = signal.Signals(-status)
        return f"a trial of them died of {name.name}", name in FAULTS
    return f"a trial of them failed with status {status}: {(errors or said)[-500:]}", False


def _key(library: Path, portable: Path) -> str:
    digest = hashlib.sha256(PROGRAM.read_bytes())
    for file in (library, portable):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update("\n".join(_processor()).encode())
    return digest.hexdigest()[:16]


def _processor() -> Sequence[str]:
    """What is known of the first processor: model, microcode, instruction sets."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return (platform.machine(), platform.processor(), platform.platform())
    changing = ("cpu mhz", "bogomips", "processor", "apicid", "initial apicid", "core id", "physical id")
    return sorted(line for line in first if not line.lower().startswith(changing))


def _read(known: Path) -> str | None:
    try:
        return known.read_text()
    except OSError:
        return None


def _write(known: Path, why: str) -> None:
    part = known.with_name(f"{known.name}.{os.getpid()}")
    try:
        part.write_text(why)
        os.replace(part, known)
    except OSError:  # a folder that cannot be written to: it is tried again in the next process
        part.unlink(missing_ok=True)
