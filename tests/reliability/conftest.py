"""Keeps what the page of failure modes says equal to how their tests ended in this very session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `from modes import mode`

collect_ignore = ["elastic.py", "killed.py", "ranks.py"]  # run by tests, as processes of their own
OUTCOMES = pytest.StashKey[dict[int, set[str]]]()


def pytest_configure(config):
    config.stash[OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mode = getattr(getattr(item, "function", None), "mode", None)
    if mode and (report.when == "call" or report.outcome != "passed"):
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        item.config.stash[OUTCOMES].setdefault(mode.number, set()).add(outcome)
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name == "test_page.py")  # it reads how the others ended


@pytest.fixture
def outcomes(request) -> dict[int, set[str]]:
    """How tests of failure modes ended so far: "passed", "failed", "skipped" or "xfailed", by number."""
    return request.config.stash[OUTCOMES]
