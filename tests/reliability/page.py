"""The page of failure modes, made from their tests and from what was measured of Lightning's ModelPruning.

    python tests/reliability/page.py     # writes docs/reliability.md
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MEASURED = ROOT / "benchmarks" / "results" / "reliability.json"
SOAK = ROOT / "benchmarks" / "soak.py"
NUMBERS = range(1, 74)
HEADINGS = {
    1: "The optimizer step",
    19: "Masks",
    31: "Checkpoints",
    46: "Averaging and tuning",
    53: "Several processes",
    62: "Trainer, loggers, command lines",
}
AWAITED: dict[int, tuple[str, str, str, str]] = {}  # modes without a test: the file to come, name, right, why not yet
PROSE = """# Reliability

We know {total} ways for such a plugin to fail under Lightning, and pass the tests of {passed}. The list was collected
from bug reports about Lightning's callbacks and about other pruning tools, and from experiments with prototypes of this
package.

The tables are made from the tests by `python tests/reliability/page.py`. A test fails when this page says anything
else, when one of the numbers has no test, or when a test of a mode that "passes" did not pass.

Beside the list, training processes are killed by SIGKILL at any moment, also while they write a checkpoint, and go on
until they end bit for bit as those left alone, quantized training too: `tests/reliability/test_kill.py`, fifty kills in
CI, a thousand in `make test-long`. `test_elastic.py` does so with a rank of a job that `torchrun` starts again.

**ModelPruning** is Lightning's own callback, in the same mode: measured by `benchmarks/reliability.py` on {date} with
lightning {lightning} and torch {torch}, on 2,000 weights of which 200 are to live from the end of the first epoch on.
"yes": it behaves as the second column says. An empty cell was not measured; nothing is guessed.
{quoted}
"""


LONG = """
## Long runs

RigL moved its masks after every one of 20,000 steps on a model of 144 weights, in a loop of its own and in a Trainer,
STR and L0 after 5,000. Wrong counts: after how many steps other than the promised number of weights lived. Of objects,
tensors, blocks of Python's allocator and bytes of the process, what a step added; of the lines of this package, what a
step added at the one that grew the most. Time is CPU time of a step, soon after the beginning and at the end, and their
ratio; beside it the ratio of a dense model that took its turn in the same loop, which is that of the machine. A
Trainer's ratio has nothing beside it: while little else ran, a step with masks stayed as cheap as it was. The rows of
the Trainer are of the date below, the others a day older.
The last rows are controls: RigL that keeps something of every step, to see that a leak is found.

{table}

Measured by `benchmarks/soak.py` on {date} with torch {torch} and Python {python}, on {machine}. Tests look at
objects and tensors in shorter runs, and `make test-long` measures again.
"""


class Row(NamedTuple):
    """A failure mode with all that is known of it.

    Attributes:
        number: from 1.
        name: what goes wrong.
        right: the right behaviour.
        note: what the tests cannot show.
        tests: their places, file and name.
        why: the reason of an expected failure; empty where all tests are to pass.
    """

    number: int
    name: str
    right: str
    note: str
    tests: list[str]
    why: str

    @property
    def passes(self) -> bool:
        """Whether the tests are there and expected to pass."""
        return bool(self.tests) and not self.why


def load(path: Path) -> ModuleType:
    """A test file, or a benchmark, as a module."""
    sys.path[:0] = [str(folder) for folder in (HERE, HERE.parent) if str(folder) not in sys.path]
    sys.path += [str(SOAK.parent)] if str(SOAK.parent) not in sys.path else []  # benchmarks import their neighbours
    spec = importlib.util.spec_from_file_location(f"page_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected_failures(test: Any) -> list[str]:
    """The reasons of a test's ``xfail`` marks, also of single parameters."""
    marks = list(getattr(test, "pytestmark", []))
    values = [value for mark in marks if mark.name == "parametrize" for value in mark.args[1]]
    marks += [mark for value in values for mark in getattr(value, "marks", ())]
    return [str(mark.kwargs.get("reason", "")) or "known" for mark in marks if mark.name == "xfail"]


def collect(modules: dict[str, ModuleType]) -> dict[int, Row]:
    """Every mode that has a test, by number.

    Args:
        modules: the test files by name.

    Raises:
        ValueError: where not exactly one test of a mode names it.
    """
    rows: dict[int, Row] = {}
    for file, module in modules.items():
        for name, test in vars(module).items():
            mode = getattr(test, "mode", None)
            if not name.startswith("test_") or mode is None:
                continue
            row = rows.get(mode.number, Row(mode.number, "", "", "", [], ""))
            if row.name and mode.name:
                raise ValueError(f"mode {mode.number} is named twice, the second time by {name}")
            texts = [row.name or mode.name, row.right or mode.right, row.note or mode.note]
            why = "; ".join(filter(None, [row.why, *expected_failures(test)]))
            rows[mode.number] = Row(mode.number, *texts, [*row.tests, f"{file}::{name}"], why)
    if bare := [number for number, row in rows.items() if not (row.name and row.right)]:
        raise ValueError(f"no test names modes {bare}")
    return rows


def rows() -> dict[int, Row]:
    """All modes in order; those that are awaited without tests."""
    files = [path for path in sorted(HERE.glob("test_*.py")) if path.stem != "test_page"]
    files = [path for path in files if "@mode(" in path.read_text()]
    found = collect({path.name: load(path) for path in files})
    for number, (file, name, right, why) in AWAITED.items():
        if not (HERE / file).exists():
            found[number] = Row(number, name, right, "", [], why)
    return dict(sorted(found.items()))


def stored() -> dict[str, Any]:
    """What was measured of ModelPruning."""
    return dict(json.loads(MEASURED.read_text()))


def answer(found: dict[str, Any] | None) -> str:
    """A cell of the last column."""
    if found is None:
        return ""
    return ("yes" if found["ok"] else "**no**") + (f": {found['words']}" if found["words"] else "")


def line(row: Row, measured: dict[str, Any]) -> str:
    """A row of a table."""
    tests = "<br>".join(f"`{test.rpartition('::')[2].removeprefix('test_')}`" for test in row.tests)
    passes = "yes" if row.passes else f"**no**: {row.why}"
    cells = [str(row.number), row.name, row.right, tests, passes + (f" ({row.note})" if row.note else "")]
    return "| " + " | ".join([*cells, answer(measured.get(str(row.number)))]) + " |"


def long_runs() -> str:
    """What was measured in long runs."""
    soak = load(SOAK)
    result = json.loads(soak.RESULTS.read_text())
    return LONG.format(table=soak.table(result), **{key: result[key] for key in ("date", "torch", "python", "machine")})


def page() -> str:
    """The whole page."""
    found, known = rows(), stored()
    quoted = "".join(f"Mode {n}: {cell['source']}.\n" for n, cell in known["reported"].items())
    about = {key: known[key] for key in ("date", "lightning", "torch")}
    passed = sum(row.passes for row in found.values())
    parts = [PROSE.format(passed=passed, total=len(NUMBERS), quoted=quoted, **about)]
    measured = {**known["modes"], **known["reported"]}
    for number, row in found.items():
        if number in HEADINGS:
            head = "| | failure mode | right behaviour | test | passes | ModelPruning |\n|---|---|---|---|---|---|\n"
            parts.append(f"\n## {HEADINGS[number]}\n\n{head}")
        parts.append(line(row, measured) + "\n")
    return "".join([*parts, long_runs()])


if __name__ == "__main__":
    PAGE.write_text(page())
