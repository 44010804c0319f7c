"""A program: all kernels of one compiled library beside the portable ones, on small awkward shapes.

    python proof.py LIBRARY INSTRUCTION_SET PORTABLE_LIBRARY

It runs in a process of its own, which may die of an instruction that the processor does not have, and needs only the
standard library. It says ``proved`` if all agree; otherwise what differs, with the exit status ``DIFFERS``.
"""

import array
import ctypes
import functools
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

DIFFERS = 3
SIGNATURES = {  # of the kernels: integers, then addresses
    "linear_forward": "i" * 6 + "p" * 6,
    "linear_backward": "i" * 7 + "p" * 11,
    "conv_forward": "i" * 3 + "p" * 7,
    "conv_backward": "i" * 3 + "p" * 12,
}
FLOAT, DOUBLE, BFLOAT16 = range(3)
OUTER: dict[int, Any] = {FLOAT: ctypes.c_float, DOUBLE: ctypes.c_double, BFLOAT16: ctypes.c_uint16}  # inputs, outputs
INNER: dict[int, Any] = {FLOAT: ctypes.c_float, DOUBLE: ctypes.c_double, BFLOAT16: ctypes.c_float}  # values, bias
TOLERANCE = {ctypes.c_float: 1e-4, ctypes.c_double: 1e-11, ctypes.c_uint16: 2.0**-6}
GUARD = 64  # numbers behind each result that nobody may write to
Numbers = Any  # an array of ctypes
draw = random.Random(0)
POOL_SIZE = 30000


class Case(NamedTuple):
    """One call: a kernel, its integers and inputs, and the results by name, each with its type and size."""

    kernel: str
    title: str
    integers: tuple[int, ...]
    inputs: tuple[Numbers, ...]
    results: dict[str, tuple[Any, int]]


class Index(NamedTuple):
    """Live entries of a matrix by rows, and of its other view; as in topology.py."""

    pointer: Numbers
    column: Numbers
    turned_pointer: Numbers
    turned_column: Numbers
    order: Numbers


def signed(function: Any, name: str) -> Callable[..., int]:
    """A kernel that knows what it takes."""
    function.argtypes = [{"i": ctypes.c_int, "p": ctypes.c_void_p}[letter] for letter in SIGNATURES[name]]
    found: Callable[..., int] = function
    return found


def integers(numbers: Sequence[int]) -> Numbers:
    """An array of int, never without a place."""
    return (ctypes.c_int * max(1, len(numbers)))(*numbers)


@functools.cache
def pool(kind: Any) -> bytes:
    """Random numbers of a type; bfloat16 as the upper half of a float."""
    found = array.array("d", (draw.uniform(-1, 1) for _ in range(POOL_SIZE)))
    if kind is ctypes.c_double:
        return found.tobytes()
    halves = array.array("f", found).tobytes()
    return halves if kind is ctypes.c_float else array.array("H", halves)[1::2].tobytes()  # little-endian


def numbers(kind: Any, count: int) -> Numbers:
    """Some of these, from a random place on."""
    width = ctypes.sizeof(kind)
    return (kind * max(1, count)).from_buffer_copy(pool(kind), draw.randrange(POOL_SIZE - count) * width)


def as_float(kind: Any, value: float) -> float:
    """What a number of a type stands for."""
    if kind is ctypes.c_uint16:
        return float(struct.unpack("<f", struct.pack("<I", int(value) << 16))[0])
    return value


def grouped(places: Sequence[tuple[int, int]], rows: int, columns: int, block: int) -> tuple[Numbers, Numbers]:
    """Where each block of each row begins, and the columns, of places in order."""
    pointer, at = [0], 0
    for row in range(rows):
        for end in range(block, max(columns, 1) + block, block):
            while at < len(places) and places[at][0] == row and places[at][1] < end:
                at += 1
            pointer.append(at)
    return integers(pointer), integers([column for _, column in places])


def index(
    live: Sequence[tuple[int, int]],
    turn: Callable[[int, int], tuple[int, int]],
    sizes: tuple[int, int, int, int],
    block: int,
) -> Index:
    """Of live entries in order; `turn` says where each is in the other view; sizes: rows, columns of both views."""
    turned = sorted((turn(*place), k) for k, place in enumerate(live))
    rows, columns, turned_rows, turned_columns = sizes
    own = grouped(live, rows, columns, block or columns)
    other = grouped([place for place, _ in turned], turned_rows, turned_columns, block or turned_columns)
    return Index(*own, *other, integers([k for _, k in turned]))


def places(rows: int, columns: int, percent: int) -> list[tuple[int, int]]:
    """Random live entries; some rows have none, some all."""
    own = [draw.choice((percent, percent, percent, 0, 100)) if 0 < percent < 100 else percent for _ in range(rows)]
    return [(i, j) for i in range(rows) for j in range(columns) if draw.randrange(100) < own[i]]


def linear(kind: int, threads: int, batch: int, rows: int, columns: int, percent: int, block: int) -> Iterator[Case]:
    """Both kernels of a linear layer."""
    title = f"linear kind {kind}, threads {threads}, batch {batch}, {rows} x {columns}, {percent} %, blocks of {block}"
    live = places(rows, columns, percent)
    of = index(live, lambda i, j: (j, i), (rows, columns, columns, rows), block)
    outer, inner, count = OUTER[kind], INNER[kind], max(1, len(live))
    values, bias, x, g = (
        numbers(kind, size)
        for kind, size in ((inner, len(live)), (inner, rows), (outer, batch * columns), (outer, batch * rows))
    )
    blocks, turned_blocks = -(-columns // block), -(-rows // block)
    shape = (kind, threads, batch, rows, columns, blocks)
    results = {"output": (outer, batch * rows)}
    yield Case("linear_forward", title, shape, (of.pointer, of.column, values, bias, x), results)
    results = {
        "gradient of the input": (outer, batch * columns),
        "gradient of the values": (inner, count),
        "gradient of the bias": (inner, rows),
    }
    yield Case("linear_backward", title, (*shape, turned_blocks), (*of, values, x, g), results)


def convolution(
    kind: int, threads: int, batch: int, planes: tuple[int, int], axes: Sequence[tuple[int, ...]], percent: int
) -> Iterator[Case]:
    """Both kernels of a convolution; an axis: size, kernel, stride, padding."""
    title = f"convolution kind {kind}, threads {threads}, batch {batch}, planes {planes}, axes {axes}, {percent} %"
    inputs, outputs = planes
    outs = [(size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in axes]
    taps = axes[0][1] * axes[1][1]
    live = places(outputs, inputs * taps, percent)
    turn = lambda o, j: (j // taps, o * taps + j % taps)  # noqa: E731
    of = index(live, turn, (outputs, inputs * taps, inputs, outputs * taps), 0)
    size = integers([inputs, outputs, *(n for a, o in zip(axes, outs, strict=True) for n in (a[0], o, *a[1:]))])
    outer, inner, count = OUTER[kind], INNER[kind], max(1, len(live))
    n_x, n_y = batch * inputs * axes[0][0] * axes[1][0], batch * outputs * outs[0] * outs[1]
    values, bias, x, g = (
        numbers(kind, n) for kind, n in ((inner, len(live)), (inner, outputs), (outer, n_x), (outer, n_y))
    )
    shape = (kind, threads, batch)
    results = {"output": (outer, n_y)}
    yield Case("conv_forward", title, shape, (size, of.pointer, of.column, values, bias, x), results)
    results = {
        "gradient of the input": (outer, n_x),
        "gradient of the values": (inner, count),
        "gradient of the bias": (inner, outputs),
    }
    yield Case("conv_backward", title, shape, (size, *of, values, x, g), results)


def cases() -> Iterator[Case]:
    """All kernels, types and widths, with tails of all kinds, empty rows and full ones."""
    for kind in (FLOAT, DOUBLE, BFLOAT16):
        for batch in (1, 2, 7, 8, 9, 16, 17, 24, 33, 50, 64, 65, 130):
            for percent, block in ((draw.choice((0, 100)), 2048), (20, 2048), (60, 8)):
                yield from linear(kind, 1 + batch % 2, batch, draw.randint(1, 40), draw.randint(1, 40), percent, block)
        for kernel in (1, 2, 3, 5):
            for stride in (1, 2, 3):
                for pad in range(min(kernel, 3)):
                    other = draw.choice((kernel, 1, 3))
                    axes = (
                        (draw.randint(5, 9), kernel, stride, pad),
                        (draw.randint(5, 17), other, stride, min(pad, other - 1)),
                    )
                    planes = (draw.randint(1, 4), draw.randint(1, 4))
                    percent = draw.choice((0, 30, 60, 100))
                    yield from convolution(kind, 1 + stride % 2, draw.randint(1, 18), planes, axes, percent)


def ran(library: ctypes.CDLL, isa: str, case: Case) -> list[Numbers]:
    """The results of a call, with what is behind them."""
    made = []
    for kind, count in case.results.values():
        made.append((kind * (count + GUARD))())
        ctypes.memset(made[-1], 0x7D, ctypes.sizeof(made[-1]))  # a large finite number in each type
    kernel = signed(getattr(library, f"{case.kernel}_{isa}"), case.kernel)
    if kernel(*case.integers, *case.inputs, *made):
        raise MemoryError(case.title)
    return made


def difference(case: Case, got: Sequence[Numbers], wanted: Sequence[Numbers]) -> str:
    """What differs, or nothing."""
    for (name, (kind, count)), ours, theirs in zip(case.results.items(), got, wanted, strict=True):
        if bytes(ours) == bytes(theirs):
            continue
        for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one == other:
                continue
            a, b = as_float(kind, one), as_float(kind, other)
            if not abs(a - b) <= TOLERANCE[kind] * (1 + abs(b)) * (k < count):  # behind the end: no change at all
                where = f"number {k}" if k < count else f"{k - count + 1} behind the end"
                return f"{name}, {where}: {a:g}, not {b:g} ({case.title})"
    return ""


def main(library: str, isa: str, portable: str) -> int:
    """Try all cases until one differs; the exit status."""
    os.environ["OMP_WAIT_POLICY"] = "passive"  # on a busy machine threads that spin wait for one another for long
    ours, theirs = ctypes.CDLL(library), ctypes.CDLL(portable)
    for case in cases():
        if found := difference(case, ran(ours, isa, case), ran(theirs, "portable", case)):
            sys.stdout.write(found)
            return DIFFERS
    sys.stdout.write("proved")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
