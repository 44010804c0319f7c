"""The machine at hand, by name."""

import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_sparse.export.reports.rows import Machine


def this_machine(threads: int, packages: Iterable[str]) -> Machine:
    """Where this process runs, today.

    Args:
        threads: that runtimes are given.
        packages: whose versions matter; those that are not installed are left out.

    Example:
        >>> here = this_machine(1, ["torch", "no_such_package"])
        >>> list(here.versions), here.threads, here.cores >= 1
        (['torch'], 1, True)
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {name: text for name in packages if (text := _version(name))}
    system = f"{platform.uname().system} {platform.machine()}"
    return Machine(cpu_name(), cores, threads, system, platform.python_version(), found, date.today().isoformat())


def cpu_name(path: str = "/proc/cpuinfo") -> str:
    """What the processor calls itself, where the system tells; else its architecture."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == "model name")
    return next(filter(None, named), "") or platform.processor() or platform.machine() or "unknown CPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
