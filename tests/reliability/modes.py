"""What a test of a failure mode says about itself: its number, what goes wrong, and the right behaviour."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

Test = TypeVar("Test", bound=Callable[..., object])


class Mode(NamedTuple):
    """One way to fail.

    Attributes:
        number: in the list, from 1.
        name: what goes wrong, or what is asked of the package; empty in a second test of the same mode.
        right: the right behaviour.
        note: what the test cannot show, for the page; empty when there is nothing to say.
    """

    number: int
    name: str = ""
    right: str = ""
    note: str = ""


def mode(number: int, name: str = "", *, right: str = "", note: str = "") -> Callable[[Test], Test]:
    """Mark a test as that of a failure mode; the first test of a mode names it."""

    def marked(test: Test) -> Test:
        test.mode = Mode(number, name, right, note)  # type: ignore[attr-defined]
        return test

    return marked
