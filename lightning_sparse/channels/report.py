"""What was cut out of a model, and what was not and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from lightning_sparse.channels.atoms import Graph, Kept
from lightning_sparse.channels.latency import Latency
from lightning_sparse.channels.parts import layout, parameter_shapes
from lightning_sparse.channels.prices import Prices
from lightning_sparse.core.plan import count, table
from lightning_sparse.core.select import inputs_first, targets


@dataclass(frozen=True)
class AxisRow:
    """One row of a :class:`ChannelReport`: an axis of channels, or a layer whose outputs cannot be cut.

    Parameters and FLOPs are those of the tensors whose outputs lie on the axis. Each tensor is in one row.

    Attributes:
        name: of the axis: the first layer that produces it.
        channels: before.
        kept: after.
        params: before.
        params_kept: after.
        flops: forward, a sample, before.
        flops_kept: after.
        why: it lost nothing; empty where it could.
    """

    name: str
    channels: int
    kept: int
    params: int
    params_kept: int
    flops: float
    flops_kept: float
    why: str = ""


@dataclass(frozen=True)
class ChannelReport:
    """A table of what was cut, with the totals of the model; ``print`` it.

    Attributes:
        rows: a row for each axis and for each layer that cannot be cut.
        unknown: operations that the engine has no rule for, and how often they were met; they freeze what they touch.
        notes: what else there is to know.
        latency: what was measured, for ``target="latency"``.

    Example:
        >>> row = AxisRow("conv1", channels=8, kept=4, params=80, params_kept=40, flops=1600.0, flops_kept=800.0)
        >>> print(ChannelReport((row, AxisRow("fc", 10, 10, 90, 50, 160.0, 80.0, "it is what the model puts out"))))
        axis   channels  stay  parameters  stay   FLOPs  stay
        conv1         8     4          80    40   1.6 k   800
        fc           10    10          90    50     160    80  it is what the model puts out
        total         8     4         170    90  1.76 k   880
    """

    rows: tuple[AxisRow, ...]
    unknown: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    latency: Latency | None = None

    @property
    def params(self) -> tuple[int, int]:
        """Parameters of the model, before and after."""
        return sum(row.params for row in self.rows), sum(row.params_kept for row in self.rows)

    @property
    def flops(self) -> tuple[float, float]:
        """Forward FLOPs of the model a sample, before and after."""
        return sum(row.flops for row in self.rows), sum(row.flops_kept for row in self.rows)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of what could be cut, before and after."""
        free = [row for row in self.rows if not row.why]
        return sum(row.channels for row in free), sum(row.kept for row in free)

    def __str__(self) -> str:
        """The table."""
        cells = [("axis", "channels", "stay", "parameters", "stay", "FLOPs", "stay")]
        for r in self.rows:
            numbers = (f"{r.channels:,}", f"{r.kept:,}", f"{r.params:,}", f"{r.params_kept:,}")
            cells.append((r.name, *numbers, count(r.flops).strip(), count(r.flops_kept).strip()))
        (channels, kept), (params, left), (flops, after) = self.channels, self.params, self.flops
        total = (f"{channels:,}", f"{kept:,}", f"{params:,}", f"{left:,}", count(flops).strip(), count(after).strip())
        head, *lines = table([*cells, ("total", *total)]).split("\n")
        reasons = [*(row.why for row in self.rows), ""]
        text = [head, *(f"{line}  {why}".rstrip() for line, why in zip(lines, reasons, strict=True))]
        text += [f"no rule for {name} ({times}x): what it touches stays whole" for name, times in self.unknown.items()]
        return "\n".join([*text, *([str(self.latency)] if self.latency else []), *self.notes])


def make_report(
    model: nn.Module,
    graph: Graph,
    kept: Kept,
    *,
    why: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    latency: Latency | None = None,
    samples: int = 1,
) -> ChannelReport:
    """The report of a cut that is about to be made: call it before.

    Args:
        model: any module.
        graph: of this model.
        kept: the channels that stay, by axis; those that are missing stay whole.
        why: an axis stays whole, by its name.
        notes: to add.
        latency: what was measured.
        samples: in the run that was traced.
    """
    prices = Prices(graph, parameter_shapes(model))
    counts = {name: len(index) for name, index in kept.items()}
    channels = {atom.name: atom.channels for atom in graph.atoms}
    given = why or {}

    def row(owner: _Owner, names: list[str]) -> AxisRow:
        return AxisRow(
            name=owner.name,
            channels=channels[owner.name] if owner.free else owner.channels,
            kept=counts.get(owner.name, channels[owner.name]) if owner.free else owner.channels,
            params=sum(prices.params_of(name, {}) for name in names),
            params_kept=sum(prices.params_of(name, counts) for name in names),
            flops=sum(prices.flops_of(name, {}) for name in names) / samples,
            flops_kept=sum(prices.flops_of(name, counts) for name in names) / samples,
            why=given.get(owner.name, "") if owner.free else owner.why,
        )

    rows = tuple(row(owner, names) for owner, names in _owned(model, graph).items())
    return ChannelReport(rows, dict(graph.unknown), tuple(notes), latency)


@dataclass(frozen=True)
class _Owner:
    """An axis that can be cut, or a layer whose outputs cannot."""

    name: str
    free: bool
    channels: int = 0
    why: str = ""


def _owned(model: nn.Module, graph: Graph) -> dict[_Owner, list[str]]:
    """The parameters of each row, each in one row: by the axis of its outputs, else by its module; in model order."""
    axes = {
        slot.place.name: _Owner(atom, True)
        for atom, slots in reversed(layout(model, graph).items())
        for slot in slots
        if slot.role != "in"
    }
    layers: dict[str, _Owner] = {}
    found: dict[_Owner, list[str]] = {}
    for target, _ in targets(model):
        layer = target.name.rpartition(".")[0]
        if target.name in axes:
            owner = axes[target.name]
        elif layer in layers:
            owner = layers[layer]
        else:
            dim = int(target.weight.ndim > 1 and inputs_first(target.module))
            why = graph.frozen.get(f"{target.name}:{dim}", "it stays whole")
            size = target.weight.shape[dim] if target.weight.ndim else 1
            owner = layers[layer] = _Owner(layer or target.name, False, size, why)
        found.setdefault(owner, []).append(target.name)
    for atom in graph.atoms:  # of buffers alone
        found.setdefault(_Owner(atom.name, True), [])
    return found
