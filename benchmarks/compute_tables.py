"""The tables and the plot of docs/kernels.md, from results/compute.jsonl.

python benchmarks/compute_tables.py    # prints the tables, writes docs/kernels.svg
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import read

RESULTS = Path(__file__).parent / "results" / "compute.jsonl"
PLOT = Path(__file__).parents[1] / "docs" / "kernels.svg"
DENSE = ("dense MKL", "dense oneDNN")
WIDE = "1024-4096-1024"
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
MODELS = {
    WIDE: "MLP 1024-4096-1024, batch 128",
    "784-300-100-10": "MLP 784-300-100-10, batch 128",
    "256-1024-256": "MLP block of a transformer, 256-1024-256, 1024 tokens",
}
METHODS = ("dense MKL", "dense oneDNN", "dense bf16", "masked dense", "torch operators", "sparselab", "sparseprop")
Key = tuple[str, str, int, float]


def rows(bench: str, path: Path = RESULTS) -> dict[Key, dict[str, dict[str, Any]]]:
    """By what was measured, then by method; where it was measured again, the last counts."""
    found: dict[Key, dict[str, dict[str, Any]]] = {}
    for row in read(path):
        if row["bench"] == bench:
            key = (bench, str(row.get("model")), int(str(row.get("batch", 0))), float(str(row.get("density", 0))))
            found.setdefault(key, {})[str(row["method"])] = row
    return found


def times(bench: str, model: str, density: float, batch: int | None = None) -> dict[str, float]:
    """Milliseconds by method, of one setting."""
    for (_, own, size, share), methods in rows(bench).items():
        if (own, share) == (model, density) and batch in (None, size):
            return {name: row["ms"] for name, row in methods.items()}
    return {}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def speeds(model: str, density: float) -> dict[str, float]:
    """How many times as fast as the best dense float32 step."""
    found = times("train", model, density)
    best = min(found[name] for name in DENSE)
    return {name: best / ms for name, ms in found.items()}


def training() -> str:
    """Speed of training steps by method and density, times the best dense one."""
    lines = []
    for model, title in MODELS.items():
        found = [speeds(model, density) for density in DENSITIES]
        for name in (*METHODS, "ours", "ours bf16"):
            shown = f"**{name}**" if name.startswith("ours") else name
            lines.append([title, shown, *(f"{of[name]:.2f}" if name in of else "" for of in found)])
            title = ""
    return table(["step of", "by", *(f"{density:.0%}" for density in DENSITIES)], lines)


def network() -> str:
    """Speed of training steps of a wide residual network, times the best dense one, and the ceiling."""
    lines = []
    for density in DENSITIES:
        found = times("conv", "WRN-16-4", density)
        if not found:
            continue
        best = min(found["dense"], found["dense channels_last"])
        cells = [f"{best / found[name]:.2f}" if name in found else "" for name in ("sparseprop", "ours", "without 3x3")]
        lines.append([f"{density:.0%}", f"{best:.0f}", *cells])
    return table(
        ["density", "best dense, ms", "sparseprop", "**ours**", "ceiling: 3x3 convolutions take no time"], lines
    )


def inference() -> str:
    """Speed of inference, times ONNX Runtime's float32, at 5 % density."""
    lines = []
    for (_, model, batch, density), methods in rows("inference").items():
        if density == 0.05:
            runtime = methods["ONNX Runtime"]["ms"]
            cells = [
                f"{runtime / methods[name]['ms']:.1f}" if name in methods else ""
                for name in ("torch", "ONNX Runtime int8", "ours")
            ]
            lines.append([model, str(batch), f"{runtime:.2f}", *cells])
    return table(["layer", "batch", "ONNX Runtime float32, ms", "torch", "ONNX Runtime int8", "**ours**"], lines)


def memory() -> str:
    """Megabytes of an MLP in training with AdamW."""
    kinds = ("parameters", "gradients", "state", "indices", "activations")
    found = rows("memory")
    first = found["memory", WIDE, 0, DENSITIES[0]]
    shown = [("dense", first["dense MKL"]), ("masked dense", first["masked dense"])]
    shown += [(f"**ours**, {density:.0%}", found["memory", WIDE, 0, density]["ours"]) for density in DENSITIES]
    whole = sum(first["dense MKL"][kind] for kind in kinds[:4])
    lines = [
        [
            name,
            *(f"{row[kind] / 1e6:.1f}" for kind in kinds),
            f"{sum(row[kind] for kind in kinds[:4]) / whole:.3f}",
        ]
        for name, row in shown
    ]
    return table(["", *kinds, "of dense, without activations"], lines)


def roofline() -> str:
    """Operations and bytes a second of single kernels."""
    (found,) = rows("roofline").values()
    lines = [[name, f"{row['ms']:.2f}", f"{row['gflops']:.1f}", f"{row['gbs']:.1f}"] for name, row in found.items()]
    return table(["", "ms", "GFLOP/s", "GB/s"], lines)


def machine() -> str:
    """What it was measured on, and when."""
    last = [row for row in read(RESULTS) if "cpu" in row][-1]
    return f"{last['cpu']}, {last['isa']} kernels, torch {last['torch']}, {last['date']}"


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """The density at which a line of (density, speed) meets 1, on logarithmic axes."""
    for (a, fast), (b, slow) in pairwise(points):
        if (fast - 1) * (slow - 1) <= 0 and fast != slow:
            share = math.log(fast) / (math.log(fast) - math.log(slow))
            return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
    return None


def lines_of_plot() -> dict[str, list[tuple[float, float]]]:
    """Speed over density of the wide MLP, by method, sparsest first."""
    densities = sorted({key[3] for key in rows("train") if key[1] == WIDE})
    found = {density: speeds(WIDE, density) for density in densities}
    names = ("ours", "sparseprop", "sparselab", "torch operators", "masked dense")
    return {name: [(d, of[name]) for d, of in found.items() if name in of] for name in names}


def plot() -> str:
    """An SVG: speed over density of a training step, and where each line crosses the best dense one."""
    width, height, left, top = 560, 340, 50, 20
    x = lambda d: left + (math.log(d) - math.log(0.009)) / math.log(0.6 / 0.009) * width  # noqa: E731
    y = lambda s: top + height - (math.log(s) - math.log(0.03)) / math.log(20 / 0.03) * height  # noqa: E731
    colours = ("#c0392b", "#2980b9", "#8e44ad", "#7f8c8d", "#27ae60")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 410" font-family="sans-serif" font-size="12">',
        '<rect width="840" height="410" fill="white"/>',
    ]
    for d in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        parts.append(f'<path d="M{x(d):.1f} {top}V{top + height}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(d):.1f}" y="{top + height + 16}" text-anchor="middle">{d:.0%}</text>')
    for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10):
        stroke = "#000" if s == 1 else "#ddd"
        parts.append(f'<path d="M{left} {y(s):.1f}H{left + width}" stroke="{stroke}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(s) + 4:.1f}" text-anchor="end">{s:g}x</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">density of the weights</text>'
    )
    for n, (name, points) in enumerate(lines_of_plot().items()):
        if not points:
            continue
        path = "L".join(f"{x(d):.1f} {y(s):.1f}" for d, s in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colours[n]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(d):.1f}" cy="{y(s):.1f}" r="3" fill="{colours[n]}"/>' for d, s in points]
        at = crossing(points)
        note = f"{name}{f': as dense at {at:.0%}' if at else ''}"
        parts.append(f'<text x="{left + width + 10}" y="{top + 20 + 20 * n}" fill="{colours[n]}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """All of them."""
    for part in (machine, training, network, inference, memory, roofline):
        print(part.__name__, part(), sep="\n\n", end="\n\n")
    PLOT.write_text(plot())


if __name__ == "__main__":
    main()
