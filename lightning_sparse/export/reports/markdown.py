"""A report as Markdown that can be read as it is."""

from collections.abc import Sequence

from lightning_sparse.export.reports.cells import Column, columns, foot, over_words, speedups
from lightning_sparse.export.reports.rows import Machine, Row


def markdown(rows: Sequence[Row], machine: Machine, metric: str, notes: Sequence[str]) -> str:
    """Tables and notes."""
    parts = [_table(columns(rows, metric), rows)]
    if faster := speedups(rows, machine):
        parts += [plain(over_words(rows[0], machine)) + ":", _table(faster, rows)]
    parts.append("\n".join(f"- {plain(note)}" for note in foot(rows, machine, notes)))
    return "\n\n".join(parts)


def plain(text: str) -> str:
    r"""Text that stands for itself in a cell, whatever is in it.

    Example:
        >>> plain("a|b <script>")
        'a\\|b &lt;script&gt;'
    """
    text = " ".join(text.split())
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return "".join(f"\\{sign}" if sign in "\\|`*[]" else sign for sign in text)


def _table(found: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = [[plain(column.head) for column in found]]
    lines += [[plain(column.cell(row)) for column in found] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = "|".join(f":{'-' * (w + 1)}" if i == 0 else f"{'-' * (w + 1)}:" for i, w in enumerate(widths))
    body = [[c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in lines]
    text = ["| " + " | ".join(line) + " |" for line in body]
    return "\n".join([text[0], f"|{rule}|", *text[1:]])
