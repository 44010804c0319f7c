"""An ONNX graph without what its integers make superfluous."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from lightning_sparse.export.extras import need

Bounds = tuple[float, float]
_INFINITY = float("inf")


def tidy(model: Any) -> None:
    """Take out, in place, what changes no value but hides integers from a runtime.

    A Relu or Clip whose input is on a grid within its bounds; one whose every user rounds to such a grid (Relu before a
    uint8 grid with zero point 0); rounding to a grid that the input is on already. Also the notes that the exporter
    leaves at each node, which name files of the machine it ran on. Each weight gets a zero point of its own: ONNX
    Runtime's ``session.x64quantprecision`` fails where two share one (1.32).

    Args:
        model: an ``onnx.ModelProto``.
    """
    graph = _Graph(model.graph)
    while any(graph.drop(node) for node in list(model.graph.node)):
        pass
    graph.sweep()
    graph.part()
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")


class _Grid(NamedTuple):
    """Scale and zero point of one tensor, and the values of its last codes."""

    scale: float
    zero_point: int
    dtype: str
    low: float
    high: float


class _Graph:
    """Who makes a value, who uses it, and which are constants."""

    def __init__(self, graph: Any) -> None:
        [self.numbers] = need("onnx", "onnx.numpy_helper")
        self.graph = graph
        self.constants = {value.name: value for value in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.outputs = {value.name for value in graph.output}

    def users(self, name: str) -> list[Any]:
        """Nodes that read a value; none can be known of where a branch or loop might."""
        return [node for node in self.graph.node if name in node.input]

    def drop(self, node: Any) -> bool:
        """Take the node out if it does nothing."""
        if node.op_type == "QuantizeLinear":
            before = self.maker.get(node.input[0])
            if before is not None and before.op_type == "DequantizeLinear":
                grid = self.grid(node)
                if grid is not None and grid == self.grid(before):
                    return self.bypass(node, before.input[0])
            return False
        bounds = self.bounds(node)
        if bounds is None:
            return False
        before = self.maker.get(node.input[0])
        sources = [before] if before is not None and before.op_type == "DequantizeLinear" else []
        users = self.users(node.output[0])
        rounding = bool(users) and all(user.op_type == "QuantizeLinear" for user in users)
        if sources and _within(self.grid(sources[0]), bounds):
            return self.bypass(node, node.input[0])
        if rounding and all(_within(self.grid(user), bounds) for user in users):
            return self.bypass(node, node.input[0])
        return False

    def bypass(self, node: Any, value: str) -> bool:
        """Give users of the node this value instead."""
        old = node.output[0]
        if old in self.outputs:
            return False
        for user in self.users(old):
            for i, name in enumerate(user.input):
                if name == old:
                    user.input[i] = value
        self.graph.node.remove(node)
        del self.maker[old]
        return True

    def bounds(self, node: Any) -> Bounds | None:
        """What a Relu or Clip with constant bounds clips to."""
        if node.op_type == "Relu":
            return 0.0, _INFINITY
        if node.op_type != "Clip" or not all(not name or name in self.constants for name in node.input[1:]):
            return None
        low, high = [*(self.number(name) for name in node.input[1:]), None, None][:2]
        return -_INFINITY if low is None else low, _INFINITY if high is None else high

    def grid(self, node: Any) -> _Grid | None:
        """The grid of a QuantizeLinear or DequantizeLinear of a whole tensor."""
        if len(node.input) < 3 or not all(name in self.constants for name in node.input[1:3]):
            return None
        scale, zero = (self.numbers.to_array(self.constants[name]) for name in node.input[1:3])
        if scale.size != 1 or str(zero.dtype) not in ("uint8", "int8"):
            return None
        first = 0 if str(zero.dtype) == "uint8" else -128
        step, middle = float(scale), int(zero)
        return _Grid(step, middle, str(zero.dtype), (first - middle) * step, (first + 255 - middle) * step)

    def number(self, name: str) -> float | None:
        """A constant's value."""
        return float(self.numbers.to_array(self.constants[name])) if name else None

    def sweep(self) -> None:
        """Take out nodes and constants that nothing uses."""
        while dead := [n for n in self.graph.node if not self._is_used(n.output)]:
            for node in dead:
                self.graph.node.remove(node)
        for value in [v for v in self.graph.initializer if not self._is_used([v.name])]:
            self.graph.initializer.remove(value)

    def part(self) -> None:
        """Zero points that several weights share become as many."""
        taken: set[str] = set()
        for node in [n for n in self.graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2]:
            name = node.input[2]
            if name in self.constants and name in taken and node.input[0] in self.constants:
                own = self.graph.initializer.add()
                own.CopyFrom(self.constants[name])
                own.name = node.input[2] = f"{node.output[0]}.zero_point"  # outputs have names of their own
            taken.add(name)

    def _is_used(self, names: Iterable[str]) -> bool:
        return any(name in self.outputs or self.users(name) for name in names)


def _within(grid: _Grid | None, bounds: Bounds) -> bool:
    """Whether clipping changes no value of the grid, but by the rounding of its scale."""
    if grid is None:
        return False
    slack = 1e-6 * grid.scale * 255
    return bounds[0] <= grid.low + slack and grid.high - slack <= bounds[1]
