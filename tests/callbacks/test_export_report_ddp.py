"""With two processes one writes the report, and neither notices."""

from pathlib import Path

import pytest
from helpers import same

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    return pair.results(Path(__file__).parents[1] / "reported_ddp.py")


def test_rank_zero_alone_makes_the_report(ranks):
    assert [rank["rows"] is None for rank in ranks] == [False, True]
    assert [row[:2] for row in ranks[0]["rows"]] == [("sparse", 12)]
    assert {"report", "report.md", "report.json", "report.html"} <= set(ranks[0]["with"]["files"])


def test_validate_is_of_one_process_and_says_so_and_the_logged_metric_stands_instead(ranks):
    assert "not validated: validate=True is of one process only" in ranks[0]["notes"]
    assert 0 <= ranks[0]["rows"][0][2] <= 1


def test_weights_and_random_states_are_those_of_a_run_without(ranks):
    for rank in ranks:
        assert same(rank["with"]["weights"], rank["without"]["weights"])
        assert rank["with"]["next"].equal(rank["without"]["next"])
