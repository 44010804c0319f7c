"""A report as one HTML file with everything in it."""

from collections.abc import Sequence
from html import escape

from lightning_sparse.core.plan import count
from lightning_sparse.export.reports.cells import (
    Column,
    columns,
    duration,
    foot,
    over_words,
    speedups,
)
from lightning_sparse.export.reports.plots import Bar, bars, points
from lightning_sparse.export.reports.rows import RUNTIMES, Machine, Row

_STYLE = """
:root { color-scheme: light dark; --k0: #2563a8; --k1: #d97a1e; --k2: #2f8f5b; --k3: #8a4fb0; --line: #9994 }
@media (prefers-color-scheme: dark) { :root { --k0: #6aa5e8; --k1: #f0a354; --k2: #67c795; --k3: #bd8be0 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.2rem; font-size: 1.1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
tbody tr:hover { background: var(--line) }
svg { width: 100%; max-width: 60rem; font: 12px system-ui, sans-serif }
svg text { fill: currentColor } svg text.name { text-anchor: end }
.k0 { fill: var(--k0); color: var(--k0) } .k1 { fill: var(--k1); color: var(--k1) }
.k2 { fill: var(--k2); color: var(--k2) } .k3 { fill: var(--k3); color: var(--k3) }
.mark { stroke: currentColor; stroke-width: 2 } .axis { stroke: currentColor; fill: none }
.legend span { margin-right: 1.2rem } .legend b { font-size: 1.3em }
""".strip()


def page(rows: Sequence[Row], machine: Machine, metric: str, notes: Sequence[str]) -> str:
    """Plots, tables and notes; no script, no other file, and whatever a model is called is text."""
    parts = ["<h1>Models side by side</h1>", _table(columns(rows, metric), rows)]
    if faster := speedups(rows, machine):
        parts += [f"<h2>{escape(over_words(rows[0], machine))}</h2>", _table(faster, rows)]
    parts += [*_sizes(rows), *_flops(rows), *_latencies(rows), *_metrics(rows, metric)]
    said = "".join(f"<li>{escape(note)}</li>" for note in foot(rows, machine, notes))
    body = "\n".join([*parts, "<h2>Notes</h2>", f"<ul>{said}</ul>"])
    head = f'<meta charset="utf-8"/><title>Models side by side</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(found: Sequence[Column], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(column.head)}</th>" for column in found)
    lines = ["<tr>" + "".join(f"<td>{escape(column.cell(row))}</td>" for column in found) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _sizes(rows: Sequence[Row]) -> list[str]:
    known = [(row.name, [Bar(row.bytes, f"{row.bytes:,}", 0, row.bound_bytes)]) for row in rows if row.bytes]
    title = "Bytes of the compressed file; the line is the entropy"
    return [f"<h2>{title}</h2>", bars(title, known)] if known else []


def _flops(rows: Sequence[Row]) -> list[str]:
    known = []
    for row in rows:
        if row.flops and row.live_flops is not None:
            live = Bar(row.live_flops, f"{count(row.live_flops).strip()} of non-zeros", 1)
            known.append((row.name, [Bar(row.flops, f"{count(row.flops).strip()}", 0), live]))
    title = "FLOPs of a forward pass, a sample"
    return [f"<h2>{title}</h2>", bars(title, known)] if known else []


def _latencies(rows: Sequence[Row]) -> list[str]:
    found, kinds = [], {name: i for i, name in enumerate(RUNTIMES)}
    for batch in dict.fromkeys(one.batch for one in rows[0].latencies):
        known = []
        for row in rows:
            timed = [one for one in row.latencies if one.batch == batch and one.wall]
            own = [Bar(o.wall, duration(o.wall), kinds[o.runtime]) for o in timed if o.wall]
            known += [(row.name, own)] if own else []
        title = f"Latency of a batch of {batch}"
        found += [f"<h2>{title}</h2>", _legend(rows), bars(title, known)] if known else []
    return found


def _legend(rows: Sequence[Row]) -> str:
    used = {one.runtime for row in rows for one in row.latencies if one.wall}
    kinds = [(i, title) for i, (name, title) in enumerate(RUNTIMES.items()) if name in used]
    return '<p class="legend">' + "".join(f'<span><b class="k{i}">&#9632;</b> {t}</span>' for i, t in kinds) + "</p>"


def _metrics(rows: Sequence[Row], metric: str) -> list[str]:
    known = [(row.name, float(row.bytes), row.metric) for row in rows if row.bytes and row.metric is not None]
    title = f"{metric} over bytes"
    return [f"<h2>{escape(title)}</h2>", points(title, "bytes (log)", metric, known)] if len(known) > 1 else []
