"""What is said below the tables of a report."""

from collections.abc import Iterable

from lightning_sparse.export.reports.rows import Latency

_BUSY = 1.25  # wall time over CPU time of one thread, beyond which others had the processor
_LEAST = 1e-4  # seconds; below, the two clocks themselves matter


class Notes:
    r"""Sentences, each once.

    Attributes:
        texts: so far.

    Example:
        >>> notes = Notes()
        >>> notes.failed("dense in ONNX Runtime", ValueError("no kernel\nfor this"))
        'failed: ValueError'
        >>> notes.texts
        ['dense in ONNX Runtime: ValueError: no kernel']
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        """Once."""
        text = "".join(sign if sign.isprintable() else " " for sign in text)
        if text not in self.texts:
            self.texts.append(text)

    def failed(self, where: str, error: BaseException) -> str:
        """A word or two for the cell; the reason, as it was in the first place, is said below."""
        while error.__cause__ is not None:
            error = error.__cause__
        kind = type(error).__name__
        self.say(f"{where}: {kind}: {first_line(error)}".rstrip(": "))
        return f"failed: {kind}"

    def busy(self, cells: Iterable[Latency]) -> None:
        """Say so where one thread had to wait for the processor."""
        ratios = [cell.wall / cell.cpu for cell in cells if cell.wall and cell.cpu and cell.wall > _LEAST]
        if ratios and max(ratios) > _BUSY:
            self.say(
                f"the machine was busy: calls took up to {max(ratios):.1f} times as long as they computed; measure "
                "again on a quiet one, or read the CPU times in report.json"
            )


def first_line(error: BaseException) -> str:
    r"""What an error says first, or every problem that it lists; 300 characters at most.

    Example:
        >>> first_line(ValueError("\n no kernel\nfor this")), first_line(ValueError("net: 2 problems\n  - a\n  - b"))
        ('no kernel', 'net: a; b')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    head, listed = lines[0], [line.removeprefix("- ") for line in lines[1:]]
    text = f"{head.rpartition(':')[0]}: {'; '.join(listed)}" if head.endswith(" problems") and listed else head
    return text[:300]
