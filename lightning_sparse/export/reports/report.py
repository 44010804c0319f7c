"""The report: rows, and how they are written down."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.export.placed import draft
from lightning_sparse.export.reports.markdown import markdown
from lightning_sparse.export.reports.page import page
from lightning_sparse.export.reports.rows import Latency, Machine, Row

VERSION = 1


@dataclass(frozen=True)
class Report:
    """Several models side by side; ``str()`` of it is a table in Markdown.

    Attributes:
        rows: a model each; others are compared with the first.
        machine: where latencies were measured.
        metric: what the numbers of ``evaluate`` are.
        notes: what was not measured and why, and what else there is to know.

    Example:
        >>> here = Machine("A CPU", 2, 1, "Linux x86_64", "3.11.2", {"torch": "2.13.0"}, "2026-01-31")
        >>> dense = Row("dense", False, 110, 110, bytes=500, bound_bytes=400.0, plain_bytes=1500)
        >>> sparse = Row("sparse", False, 110, 15, bytes=100, bound_bytes=80.0, plain_bytes=1500)
        >>> print(Report((dense, sparse), here))
        | variant | parameters | non-zeros | bytes | smaller | over entropy | FLOPs | of non-zeros |
        |:--------|-----------:|----------:|------:|--------:|-------------:|------:|-------------:|
        | dense   |        110 |       110 |   500 |    3.0x |        1.25x |     - |            - |
        | sparse  |        110 |        15 |   100 |   15.0x |        1.25x |     - |            - |
        <BLANKLINE>
        - bytes: of the compressed file; smaller: than the 1,500 that torch.save takes for dense
        - FLOPs: of a forward pass, a sample
        - A CPU (2 cores, 1 thread used), Linux x86_64, Python 3.11.2, torch 2.13.0, 2026-01-31
    """

    rows: tuple[Row, ...]
    machine: Machine
    metric: str = "accuracy"
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.markdown()

    def markdown(self) -> str:
        """One table of what the models are, one of how much faster they run, and the notes."""
        return markdown(self.rows, self.machine, self.metric, self.notes)

    def html(self) -> str:
        """The same as a page of its own, with plots: it needs no other file, no network and no script."""
        return page(self.rows, self.machine, self.metric, self.notes)

    def json(self) -> str:
        """All numbers, as :meth:`from_json` reads them; seconds, bytes and FLOPs."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """A report that was written as JSON.

        Raises:
            ValueError: if it is something else, or of another version.

        Example:
            >>> here = Machine("A CPU", 2, 1, "Linux x86_64", "3.11.2", {"torch": "2.13.0"}, "2026-01-31")
            >>> report = Report((Row("dense", False, 110, 110, metric=0.98),), here)
            >>> Report.from_json(report.json()) == report
            True
        """
        try:
            given = json.loads(text)
            if given["version"] == VERSION:
                return cls(tuple(map(_row, given["rows"])), _machine(given["machine"]), *_said(given))
            wrong = f"it has version {given['version']!r}, this is version {VERSION}"
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            wrong = f"it is no report: {error!r}"
        raise ValueError(f"cannot read the report: {wrong}")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.md, report.json and report.html into a folder, which is made; return it.

        Each file appears when all of it is on the disk.

        Raises:
            ValueError: if the folder cannot be one.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise_problems([f"{place} is a file; give the name of a folder"], "cannot save the report")
        place.mkdir(parents=True, exist_ok=True)
        for kind, text in (("md", self.markdown() + "\n"), ("json", self.json() + "\n"), ("html", self.html())):
            with draft(place / f"report.{kind}") as file:
                file.write_text(text, encoding="utf-8")
        return place


def _row(given: Mapping[str, Any]) -> Row:
    return Row(**{**given, "latencies": tuple(Latency(**one) for one in given["latencies"])})


def _machine(given: Mapping[str, Any]) -> Machine:
    return Machine(**given)


def _said(given: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return str(given["metric"]), tuple(map(str, given["notes"]))
