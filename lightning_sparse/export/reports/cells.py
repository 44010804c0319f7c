"""The cells of a report's tables, as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_sparse.core.plan import count
from lightning_sparse.export.reports.rows import RUNTIMES, Latency, Machine, Row

NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: its title.
        cell: what it says of a row.
    """

    head: str
    cell: Callable[[Row], str]


def columns(rows: Sequence[Row], metric: str) -> list[Column]:
    """What the models are, and how long they take; the metric only where one was asked for."""
    plain = rows[0].plain_bytes
    found = [
        Column("variant", lambda row: row.name),
        Column(metric, lambda row: _or_why(row, "metric", lambda value: f"{value:.4g}")),
        Column("parameters", lambda row: f"{row.parameters:,}"),
        Column("non-zeros", lambda row: f"{row.nonzeros:,}"),
        Column("bytes", lambda row: _or_why(row, "bytes", lambda value: f"{value:,.0f}")),
        Column("smaller", lambda row: times(plain, row.bytes)),
        Column("over entropy", lambda row: times(row.bytes, row.bound_bytes, 2)),
        Column("FLOPs", lambda row: _or_why(row, "flops", _count)),
        Column("of non-zeros", lambda row: _or_why(row, "live_flops", _count)),
    ]
    if all(row.metric is None and "metric" not in row.why for row in rows):
        del found[1]
    return found + [Column(one.title, _timed(one)) for one in rows[0].latencies]


def speedups(rows: Sequence[Row], machine: Machine) -> list[Column]:
    """How many times faster than the first row in PyTorch, and in ONNX Runtime; empty where that was not measured.

    Eager PyTorch is a weak baseline on some processors, so the stronger one stands beside it. On one thread CPU times
    are compared: what else the machine does hardly changes them.
    """
    if not baselines(rows[0]):
        return []
    heads = rows[0].latencies
    return [Column("variant", lambda row: row.name), *(Column(o.title, _faster(rows[0], o, machine)) for o in heads)]


def baselines(first: Row) -> list[str]:
    """The runtimes that speed-ups are over, where the first row was measured in them."""
    timed = {one.runtime for one in first.latencies if one.wall}
    return [name for name in ("eager", "onnxruntime") if name in timed]


def foot(rows: Sequence[Row], machine: Machine, notes: Sequence[str]) -> list[str]:
    """What has to be known to read the tables."""
    found = []
    if rows[0].plain_bytes is not None:
        plain = f"{rows[0].plain_bytes:,}"
        found.append(
            f"bytes: of the compressed file; smaller: than the {plain} that torch.save takes for {rows[0].name}"
        )
    found.append("FLOPs: of a forward pass, a sample")
    if any(one.wall for row in rows for one in row.latencies):
        found.append("latency: median wall time of one call, batch size behind the @; all calls in turns")
    return [*found, *notes, str(machine)]


def duration(seconds: float) -> str:
    """For people.

    Example:
        >>> [duration(value) for value in (2.5, 0.0123, 0.000045)]
        ['2.5 s', '12.3 ms', '45 us']
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def times(more: float | None, less: float | None, digits: int = 1) -> str:
    """A quotient for people; of what is not known nothing.

    Example:
        >>> times(30, 4), times(30, None)
        ('7.5x', '-')
    """
    return f"{more / less:.{digits}f}x" if more is not None and less else NOTHING


def _count(value: float) -> str:
    return count(value).strip()


def _or_why(row: Row, attribute: str, text: Callable[[float], str]) -> str:
    value = getattr(row, attribute)
    return row.why.get(attribute, NOTHING) if value is None else text(value)


def _timed(column: Latency) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        one = row.latency(column.runtime, column.batch)
        return one.why or NOTHING if one.wall is None else duration(one.wall)

    return cell


def _faster(first: Row, column: Latency, machine: Machine) -> Callable[[Row], str]:
    def taken(row: Row, runtime: str) -> float | None:
        one = row.latency(runtime, column.batch)
        return one.cpu if machine.threads == 1 else one.wall

    over = [taken(first, name) for name in baselines(first)]
    return lambda row: _quotients(over, taken(row, column.runtime))


def _quotients(over: Sequence[float | None], own: float | None) -> str:
    return " / ".join(times(base, own, 2) for base in over) if own else NOTHING


def over_words(first: Row, machine: Machine) -> str:
    """What the speed-ups are over.

    Example:
        >>> row = Row("dense", False, 1, 1, latencies=(Latency("eager", 1, 0.1, 0.1),))
        >>> over_words(row, Machine("A CPU", 2, 1, "Linux", "3.11", {}, ""))
        'Times faster than dense in PyTorch eager, by CPU time'
    """
    runtimes = " / ".join(RUNTIMES[name] for name in baselines(first))
    return f"Times faster than {first.name} in {runtimes}, by {'CPU' if machine.threads == 1 else 'wall'} time"
