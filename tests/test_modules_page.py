"""docs/modules.md names what `make modules` runs; that its numbers are true is tested there."""

import re

import pytest
from modules.cases import CASES
from modules.page import PAGE, ROOT, beginning, pinned, rows


def test_every_module_of_the_suite_has_its_row_with_the_pinned_version():
    assert len(rows()) == len(CASES)
    for case, row in zip(CASES, rows(), strict=True):
        assert row.startswith(beginning(case, pinned()[case.package])), case.name


def test_the_page_is_dated():
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", PAGE.read_text())


@pytest.mark.parametrize("package", sorted({case.package for case in CASES} | {"torchvision"}))
def test_the_environment_of_the_suite_pins_what_it_is_for(package):
    assert package in pinned()


def test_continuous_integration_runs_the_suite_with_a_cap_on_its_time():
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("step ")]
    assert [line for line in steps if re.search(r" timeout \d+ make modules\b", line)] == steps[-1:]  # all else has run
    recipe = (ROOT / "Makefile").read_text().partition("\nmodules:\n")[2].partition("\n\n")[0]
    assert re.search(r"timeout \d+ \S+ -m pytest -m modules tests/modules", recipe)
