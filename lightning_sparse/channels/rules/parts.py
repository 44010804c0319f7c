"""Tensors are cut into parts and put together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sparse.channels.flow import Flow, Label
from lightning_sparse.channels.rules.registry import NoRule, Op, dims_of, fill, rule, zeros_stay


def _without(labels: list[Label], d: int) -> list[Label]:
    return labels[:d] + labels[d + 1 :]


def _with(labels: list[Label], d: int, label: Label) -> list[Label]:
    return [*labels[:d], label, *labels[d + 1 :]]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def split(flow: Flow, op: Op) -> None:
    """Equal parts lose the same channels; unequal ones none."""
    d, labels, zero = op["dim"] % op.x.ndim, flow.of(op.x), zeros_stay(flow, op)
    label, sizes = labels[d], [part.shape[d] for part in op.outputs]
    if label is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            flow.alike(label, len(sizes))
        else:
            flow.freeze(label, "it is split in unequal parts")
    pieces: Sequence[Label] = [None] * len(sizes) if label is None else label.split(sizes)
    for part, piece in zip(op.outputs, pieces, strict=True):
        flow.put(part, _with(labels, d, piece), zero)


@rule("unbind")
def unbind(flow: Flow, op: Op) -> None:
    """One tensor for each element: their number stays."""
    labels, d = flow.of(op.x), op["dim"] % op.x.ndim
    flow.freeze(labels[d], "it is taken apart")
    for part in op.outputs:
        flow.put(part, _without(labels, d), zeros_stay(flow, op))


@rule("select")
def select(flow: Flow, op: Op) -> None:
    """One element: which one is a fixed number, so that all stay."""
    labels, d = flow.of(op.x), op["dim"] % op.x.ndim
    flow.freeze(labels[d], "one element is taken by number")
    flow.put(op.out, _without(labels, d), zeros_stay(flow, op))


@rule("slice", "narrow")
def part(flow: Flow, op: Op) -> None:
    """A part that is one of several equal ones; any other freezes the dimension."""
    d, labels = op["dim"] % op.x.ndim, flow.of(op.x)
    label, n, m = labels[d], op.x.shape[d], op.out.shape[d]
    if label is not None and m != n:
        start = op["start"] or 0
        start += n if start < 0 else 0
        if op.get("step", default=1) == 1 and m > 1 and n % m == 0 and start % m == 0:
            flow.alike(label, n // m)
            label = label[start : start + m]
        else:
            flow.freeze(label, "a part of another size is taken")
            label = None
    elif label is not None and op.get("step", default=1) != 1:
        raise NoRule
    flow.put(op.out, _with(labels, d, label), zeros_stay(flow, op))


@rule("cat", "concat", "concatenate")
def cat(flow: Flow, op: Op) -> None:
    """One after the other along a dimension; tied in the others."""
    parts = [t for t in op.inputs if t.ndim == op.out.ndim and t.numel()]
    if not parts:
        raise NoRule
    d = op["dim"] % op.out.ndim
    labels = _tied(flow, parts, skip=d)
    along = [flow.of(t)[d] for t in parts]
    if any(label is not None for label in along):
        filled = [fill(t.shape[d]) if label is None else label for t, label in zip(parts, along, strict=True)]
        labels[d] = torch.cat([piece for piece in filled if piece is not None])
    flow.put(op.out, labels, zeros_stay(flow, op))


@rule("stack")
def stack(flow: Flow, op: Op) -> None:
    """A new dimension without channels; tied in the others."""
    labels, d = _tied(flow, op.inputs), op["dim"] % op.out.ndim
    flow.put(op.out, [*labels[:d], None, *labels[d:]], zeros_stay(flow, op))


def _tied(flow: Flow, tensors: Sequence[Tensor], skip: int | None = None) -> list[Label]:
    labels = flow.of(tensors[0])
    for other in tensors[1:]:
        for d, label in enumerate(flow.of(other)):
            if d != skip:
                flow.tie(labels[d], label)
                labels[d] = label if labels[d] is None else labels[d]
    return labels


@rule("glu")
def glu(flow: Flow, op: Op) -> None:
    """The first half, gated by the second."""
    labels, d = flow.of(op.x), op["dim"] % op.x.ndim
    label = labels[d]
    if label is not None:
        label = flow.alike(label, 2)
    flow.put(op.out, _with(labels, d, label), zeros_stay(flow, op))


@rule("constant_pad_nd")
def pad(flow: Flow, op: Op) -> None:
    """Constants at the ends of some dimensions."""
    labels, given = flow.of(op.x), op["pad"]
    for i in range(len(given) // 2):
        before, after, d = given[2 * i], given[2 * i + 1], op.x.ndim - 1 - i
        label = labels[d]
        if label is None or not (before or after):
            continue
        if before < 0 or after < 0:
            raise NoRule
        empty = label.new_zeros
        labels[d] = torch.cat([empty(before), label, empty(after)])
    flow.put(op.out, labels, zeros_stay(flow, op))


@rule("index_select")
def index_select(flow: Flow, op: Op) -> None:
    """Elements by number, so that all stay."""
    labels, d = flow.of(op.x), dims_of(op["dim"], op.x.ndim)[0]
    flow.freeze(labels[d], "elements are taken by number")
    flow.freeze(flow.of(op["index"]), "it counts lookups")
    flow.put(op.out, _with(labels, d, None) if op.x.ndim else [], zeros_stay(flow, op))


@rule("index", "_unsafe_index")
def index(flow: Flow, op: Op) -> None:
    """Elements by number in some dimensions, whose elements all stay; the others keep their channels."""
    indices = list(op["indices"]) + [None] * (op.x.ndim - len(op["indices"]))
    given = [i for i in indices if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in given) and len(given) > 1:
        raise NoRule
    labels, kept, taken, d = flow.of(op.x), [], [], 0
    for i in indices:
        width = i.ndim if i is not None and i.dtype in (torch.bool, torch.uint8) else 1
        if i is None:
            kept.append((d, labels[d]))
        else:
            taken.append(len(kept))
            flow.freeze(labels[d : d + width], "elements are taken by number")
            flow.freeze(flow.of(i), "it counts lookups")
        d += width
        if d >= op.x.ndim:
            break
    spaces = op.out.ndim - len(kept)
    at = taken[0] if len(set(taken)) == 1 else 0  # indices that are apart come first
    through = [label for _, label in kept]
    flow.put(op.out, [*through[:at], *[None] * spaces, *through[at:]], zeros_stay(flow, op))


@rule("roll", "flip")
def roll(flow: Flow, op: Op) -> None:
    """Another order: not for channels."""
    labels = flow.of(op.x)
    if any(labels[d] is not None for d in dims_of(op["dims"], op.x.ndim)):
        raise NoRule
    flow.put(op.out, labels, zeros_stay(flow, op))


@rule("unfold")
def unfold(flow: Flow, op: Op) -> None:
    """Windows along a dimension, in a new last one."""
    labels, d = flow.of(op.x), op["dimension"] % op.x.ndim
    flow.freeze(labels[d], "windows are taken along it")
    flow.put(op.out, [*_with(labels, d, None), None], zeros_stay(flow, op))
