"""The table of docs/modules.md, row by row."""

from pathlib import Path

from modules.cases import ANYWHERE, Case

ROOT = Path(__file__).parents[2]
PAGE, PINS = ROOT / "docs" / "modules.md", ROOT / "constraints-modules.txt"
HEAD = "| package | model | `include` | sparse layers | live weights | of all parameters | resumed | result |"


def pinned() -> dict[str, str]:
    """The version of every package that the suite installs."""
    lines = [line.partition("==") for line in PINS.read_text().splitlines() if "==" in line and line[0] != "#"]
    return {name.lower().replace("_", "-"): version for name, _, version in lines}


def beginning(case: Case, version: str) -> str:
    """What a row says before anything is run."""
    globs = "default" if case.include is None else ", ".join(f"`{glob}`" for glob in case.include)
    return f"| {case.package} {version} | {case.model} | {globs} | "


def row(case: Case, version: str, live: dict[str, int], sizes: dict[str, int], parameters: int) -> str:
    """A case that keeps every promise; numbers are those of the run.

    Args:
        case: the model.
        version: of its package.
        live: weights that live, by layer.
        sizes: weights, by layer.
        parameters: of the whole model.
    """
    where = "in the middle of an epoch" if case.resume == ANYWHERE else "at the end of an epoch"
    counts = f"{len(sizes)} | {sum(live.values()):,} of {sum(sizes.values()):,} | {parameters:,}"
    return f"{beginning(case, version)}{counts} | {where} | passes |"


def rows() -> list[str]:
    """Those of the page as it is."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return lines[start:end]
