"""Published tables say what the result files say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/accuracy.md"])
def test_the_accuracy_table_is_what_was_measured(page):
    assert load("accuracy").table() in (ROOT / page).read_text()


def test_the_overhead_table_is_what_was_measured():
    overhead = load("overhead")
    stored = json.loads(overhead.RESULTS.read_text())
    assert overhead.table(stored) in (ROOT / "docs" / "overhead.md").read_text()
