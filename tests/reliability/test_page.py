"""docs/reliability.md says what the tests say, for each of the 73 modes."""

from types import SimpleNamespace

import page
import pytest
from modes import mode

FOUND = page.rows()


def test_every_mode_has_a_test():
    missing = [n for n in page.NUMBERS if n not in FOUND or not (FOUND[n].tests or n in page.AWAITED)]
    assert missing == []
    assert set(FOUND) == set(page.NUMBERS)


def test_the_page_on_disk_is_the_one_that_is_made():
    text = "docs/reliability.md is not what the tests say: run `python tests/reliability/page.py`"
    assert page.PAGE.read_text() == page.page(), text


def test_what_the_page_says_passes_did_pass_in_this_session(outcomes):
    wrong = {n: seen for n, seen in outcomes.items() if (seen == {"passed"}) != FOUND[n].passes}
    assert wrong == {}


def test_what_was_measured_of_others_belongs_to_a_mode():
    known = page.stored()
    numbers = [*known["modes"], *known["reported"]]
    assert set(map(int, numbers)) <= set(page.NUMBERS)
    assert len(set(numbers)) == len(numbers)


@mode(1, "a", right="b", note="c")
def good(): ...


@mode(1)
@pytest.mark.xfail(reason="not yet", strict=True)
def bad(): ...


def test_an_expected_failure_is_a_no_with_its_reason():
    fine = page.collect({"file": SimpleNamespace(test_good=good)})[1]
    assert fine.passes
    assert page.line(fine, {"1": {"ok": False, "words": "hangs"}}) == "| 1 | a | b | `good` | yes (c) | **no**: hangs |"
    row = page.collect({"file": SimpleNamespace(test_good=good, test_bad=bad)})[1]
    assert not row.passes
    assert page.line(row, {}) == "| 1 | a | b | `good`<br>`bad` | **no**: not yet (c) |  |"


def test_an_expected_failure_of_one_parameter_is_a_no():
    @mode(1, "a", right="b")
    @pytest.mark.parametrize("value", [1, pytest.param(2, marks=pytest.mark.xfail(reason="two is too many"))])
    def half(value): ...

    assert page.collect({"file": SimpleNamespace(test_it=half)})[1].why == "two is too many"


@pytest.mark.parametrize("tests", [{"test_a": good, "test_b": good}, {"test_b": bad}], ids=["twice", "never"])
def test_a_mode_that_is_not_named_once_is_refused(tests):
    with pytest.raises(ValueError, match=r"named twice|no test names"):
        page.collect({"file": SimpleNamespace(**tests)})
