"""What a benchmark leaves behind: lines of a file, with what they were measured on."""

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import torch

Row = dict[str, object]


def commit() -> str:
    """The commit that was measured; a plus marks changes on top of it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "--", "../lightning_sparse") else ""
    )


COMMIT = commit()  # of the code that this process has loaded, whatever is committed while it runs


def versions() -> Row:
    """What the figures of this process were taken with."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": COMMIT,
        "date": date.today().isoformat(),
    }


def read(path: Path) -> list[Row]:
    """What has run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(found: Sequence[Row]) -> list[Row]:
    """One row a seed: where a run was repeated, the last counts."""
    return list({row["seed"]: row for row in found}.values())


def error(found: Sequence[Row]) -> str:
    """Mean test error over the seeds, plus or minus its standard error."""
    errors = [float(str(r["test_error"])) for r in found]
    spread = f" ± {stdev(errors) / len(errors) ** 0.5:.2f}" if len(errors) > 1 else ""
    return f"{mean(errors):.2f}{spread}"
