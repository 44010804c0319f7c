"""Published tables say what the result files say."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "algorithms.md"
GALLERY = {  # how the rows of the gallery begin
    "set (itop)": "`RigL(variant=", "rigl (itop)": "`RigL(variant=", "lottery ticket": "`GlobalMagnitude(rounds=",
    "mest (soft)": "`mest`", "set (original)": None,
}  # fmt: skip


def load(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])  # they import their neighbours
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_accuracy_tables_are_what_was_measured(monkeypatch):
    accuracy = load("accuracy", monkeypatch)
    page = (ROOT / "docs" / "accuracy.md").read_text()
    assert [density for density in accuracy.DENSITIES if accuracy.table(density) not in page] == []
    assert accuracy.table(0.05, accuracy.FRONT) in (ROOT / "README.md").read_text()


def test_the_table_of_fashion_mnist_is_what_was_measured(monkeypatch):
    assert load("fashion", monkeypatch).table() in (ROOT / "docs" / "accuracy.md").read_text()


def row(begin):
    (found,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {begin}")]
    return found


def test_the_gallery_quotes_the_measured_errors(monkeypatch):
    accuracy = load("accuracy", monkeypatch)
    for arm in accuracy.ARMS:
        begin = GALLERY.get(arm, f"`{arm}`")
        if arm != "dense" and begin is not None:
            errors = [r["test_error"] for r in accuracy.ran(arm, 0.05)]
            assert (f"{mean(errors):.2f}" if errors else "not run") in row(begin), arm


def test_the_gallery_quotes_the_measured_costs(monkeypatch):
    stored = json.loads(load("updates", monkeypatch).RESULTS.read_text())["arms"]
    for arm, cost in stored.items():
        cells = [cell.strip() for cell in row(f"`{arm}`").split("|")]
        if arm in ("str", "l0", "topkast", "srste"):
            assert f"{cost['step_ms'] / stored['static']['step_ms']:.1f}" in cells, arm
        elif arm != "static":
            assert f"{cost['update_ms'] / 2.097:.0f}" in cells, arm


def test_every_algorithm_is_in_the_gallery():
    from lightning_sparse.catalogue import ALGORITHMS

    named = re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.M)
    assert sorted(named) == sorted(ALGORITHMS)


def test_the_overhead_table_is_what_was_measured(monkeypatch):
    overhead = load("overhead", monkeypatch)
    stored = json.loads(overhead.RESULTS.read_text())
    assert overhead.table(stored) in (ROOT / "docs" / "overhead.md").read_text()


def test_the_table_of_updates_is_what_was_measured(monkeypatch):
    updates = load("updates", monkeypatch)
    assert updates.table(json.loads(updates.RESULTS.read_text())) in (ROOT / "docs" / "overhead.md").read_text()


@pytest.mark.parametrize(("name", "table"), [("channels", "table"), ("channels", "ratios"), ("slimming", "table")])
def test_the_tables_of_channels_are_what_was_measured(name, table, monkeypatch):
    assert getattr(load(name, monkeypatch), table)() in (ROOT / "docs" / "channels.md").read_text()


def test_the_table_of_quantization_is_what_was_measured(monkeypatch):
    assert load("quantize", monkeypatch).table() in (ROOT / "docs" / "quantization.md").read_text()


@pytest.mark.parametrize("table", ["table", "speed_table"])
def test_the_tables_of_compressed_checkpoints_are_what_was_measured(table, monkeypatch):
    assert getattr(load("packed", monkeypatch), table)() in (ROOT / "docs" / "packed.md").read_text()


@pytest.mark.parametrize("table", ["table", "agreements"])
def test_the_tables_of_exports_are_what_was_measured(table, monkeypatch):
    assert getattr(load("export_speed", monkeypatch), table)() in (ROOT / "docs" / "export.md").read_text()


@pytest.mark.parametrize("part", ["machine", "training", "network", "inference", "memory", "roofline"])
def test_the_tables_of_kernels_are_what_was_measured(part, monkeypatch):
    assert getattr(load("compute_tables", monkeypatch), part)() in (ROOT / "docs" / "kernels.md").read_text()


def test_the_plot_of_kernels_is_what_was_measured(monkeypatch):
    assert load("compute_tables", monkeypatch).plot() == (ROOT / "docs" / "kernels.svg").read_text()


def test_a_line_crosses_the_dense_one_where_its_speed_is_one(monkeypatch):
    crossing = load("compute_tables", monkeypatch).crossing
    assert crossing([(0.01, 1000.0), (0.1, 10.0), (0.4, 0.625)]) == pytest.approx(0.1**0.5)  # speed 0.1 / density ** 2
    assert crossing([(0.01, 4.0), (0.5, 2.0)]) is None


@pytest.mark.parametrize("name", ["accuracy", "fashion"])
def test_a_row_of_another_recipe_does_not_count(name, monkeypatch):
    module = load(name, monkeypatch)
    arm, *_ = [arm for arm in module.ARMS if arm != "dense"]
    stray = {"arm": arm, "density": 0.05, "epochs": module.EPOCHS, "recipe": "another", "seed": 0}
    monkeypatch.setattr(module, "read", lambda path: [stray])
    assert (module.ran(arm, 0.05) if name == "accuracy" else module.ran(arm)) == []


def test_of_a_run_that_was_repeated_the_last_counts(monkeypatch):
    record = load("record", monkeypatch)
    found = [{"seed": 0, "test_error": 9.0}, {"seed": 1, "test_error": 2.0}, {"seed": 0, "test_error": 1.0}]
    assert record.error(record.newest(found)) == "1.50 ± 0.50"  # standard deviation 0.71 over the root of 2
