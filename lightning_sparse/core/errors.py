"""Problems are collected and raised together, so that a user mends them in one go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def raise_problems(problems: Sequence[str], where: str) -> None:
    """Raise one ``ValueError`` that lists every problem; do nothing when there is none.

    Args:
        problems: one sentence each, with the name, the value and the way out.
        where: what was being checked, as the head of the message.

    Raises:
        ValueError: if ``problems`` is not empty.

    Example:
        >>> raise_problems([], "MaskUpdater")
        >>> raise_problems(["density must be in (0, 1], got 3.0"], "MaskUpdater")
        Traceback (most recent call last):
        ...
        ValueError: MaskUpdater: density must be in (0, 1], got 3.0
    """
    if len(problems) == 1:
        raise ValueError(f"{where}: {problems[0]}")
    if problems:
        raise ValueError(f"{where}: {len(problems)} problems\n" + "\n".join(f"  - {p}" for p in problems))


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Turn a ``ValueError`` or ``TypeError`` of the block into one more entry of ``problems``.

    Example:
        >>> problems = []
        >>> with collecting(problems):
        ...     raise ValueError("no such layer")
        >>> problems
        ['no such layer']
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        problems.append(str(error))
