"""The same elements in another arrangement."""

from collections.abc import Sequence
from math import prod

import torch

from lightning_sparse.channels.flow import Flow, Label
from lightning_sparse.channels.rules.registry import NoRule, Op, dims_of, rule, zeros_stay


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which old dimensions make which new ones when a shape is viewed as another one.

    Example:
        >>> groups([2, 6, 4], [2, 3, 8])
        [([0], [0]), ([1, 2], [1, 2])]
        >>> groups([2, 3, 4], [6, 1, 4])
        [([0, 1], [0]), ([], [1]), ([2], [2])]
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and old[i] == 1:
            found.append(([i], []))
            i += 1
            continue
        if j < len(new) and new[j] == 1:
            found.append(([], [j]))
            j += 1
            continue
        left, right = [i], [j]
        while (a := prod(old[k] for k in left)) != (b := prod(new[k] for k in right)):
            if a < b:
                left.append(left[-1] + 1)
            else:
                right.append(right[-1] + 1)
        found.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return found


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten", "view_copy", "_reshape_copy")
def view(flow: Flow, op: Op) -> None:
    """Dimensions are merged and split; one of those that a dimension of channels is split into carries them."""
    labels: list[Label] = [None] * op.out.ndim
    if op.x.numel() == 0 or op.x.dtype != op.out.dtype:
        raise NoRule
    old = flow.of(op.x)
    for left, right in groups(op.x.shape, op.out.shape):
        _regroup(flow, old, labels, (left, op.x.shape), (right, op.out.shape))
    flow.put(op.out, labels, zeros_stay(flow, op))


def _regroup(
    flow: Flow,
    old: list[Label],
    labels: list[Label],
    left: tuple[list[int], Sequence[int]],
    right: tuple[list[int], Sequence[int]],
) -> None:
    (before, sizes), (after, new) = left, right
    with_channels = [d for d in before if old[d] is not None and sizes[d] > 1]
    if not with_channels:
        return
    shape, wide = [sizes[d] for d in before], [d for d in after if new[d] > 1]
    if [n for n in shape if n > 1] == [new[d] for d in wide]:  # only sizes of 1 came or went
        for source, target in zip([d for d in before if sizes[d] > 1], wide, strict=True):
            labels[target] = old[source]
        return
    made = [d for d in with_channels if flow.is_made(old[d])]  # two dimensions of channels cannot become one
    carrier = made[-1] if made else with_channels[0]  # by place, not by size, so that a cut changes nothing
    for d in with_channels:
        if d != carrier:
            flow.freeze(old[d], "it is merged with other channels")
    label = old[carrier]
    assert label is not None
    ones = [1] * len(before)
    ones[before.index(carrier)] = -1
    grid = label.view(ones).expand(shape).reshape([new[d] for d in after])
    place = _carrier(flow, grid)
    rows = grid.movedim(place, -1).reshape(-1, grid.shape[place])
    if len(rows) > 1:
        flow.tie(rows[1:], rows[:1])
    labels[after[place]] = rows[0]


def _carrier(flow: Flow, grid: torch.Tensor) -> int:
    """Which dimension of the grid carries the channels."""
    wide = [d for d in range(grid.ndim) if grid.shape[d] > 1]
    for d in wide:
        rows = grid.movedim(d, -1).reshape(-1, grid.shape[d])
        if bool((rows == rows[:1]).all()):
            return d
    flow.at_choice()
    if flow.policy == "first":
        return wide[0]
    return wide[1] if flow.policy == "middle" and len(wide) > 2 else wide[-1]


@rule("permute")
def permute(flow: Flow, op: Op) -> None:
    """Dimensions in another order."""
    labels = flow.of(op.x)
    flow.put(op.out, [labels[d] for d in dims_of(op["dims"], op.x.ndim)], zeros_stay(flow, op))


@rule("t", "numpy_T", "mT", "transpose", "swapaxes", "movedim")
def transpose(flow: Flow, op: Op) -> None:
    """Two dimensions change places."""
    if (op.in_place and not op.turns) or op.name == "movedim":
        raise NoRule
    labels = flow.before(op.x) if op.turns else flow.of(op.x)
    if op.name == "t":
        labels.reverse()
    elif op.x.ndim:
        a, b = (op["dim0"] % op.x.ndim, op["dim1"] % op.x.ndim) if "dim0" in op.given else (-1, -2)
        labels[a], labels[b] = labels[b], labels[a]
    flow.put(op.out, labels, not op.turns and zeros_stay(flow, op))


@rule("unsqueeze")
def unsqueeze(flow: Flow, op: Op) -> None:
    """A dimension of size 1 comes."""
    if op.in_place:
        raise NoRule
    labels, d = flow.of(op.x), op["dim"] % (op.x.ndim + 1)
    flow.put(op.out, [*labels[:d], None, *labels[d:]], zeros_stay(flow, op))


@rule("squeeze")
def squeeze(flow: Flow, op: Op) -> None:
    """Dimensions of size 1 go."""
    if op.in_place:
        raise NoRule
    dims = dims_of(op.get("dim"), op.x.ndim)
    labels = [label for d, label in enumerate(flow.of(op.x)) if not (d in dims and op.x.shape[d] == 1)]
    flow.put(op.out, labels, zeros_stay(flow, op))


@rule("expand", "broadcast_to", "expand_copy")
def expand(flow: Flow, op: Op) -> None:
    """Dimensions of size 1 are repeated: no channels, and no constants either, for ``expand_as`` follows its model."""
    lead = op.out.ndim - op.x.ndim
    before = [1] * lead + list(op.x.shape)
    free = {d for d, n in enumerate(op.out.shape) if n > before[d] == 1} | {d + lead for d in flow.known(op.x).free}
    flow.put(op.out, [None] * lead + flow.of(op.x), zeros_stay(flow, op), free)


@rule("repeat", "tile")
def repeat(flow: Flow, op: Op) -> None:
    """Copies one after the other: a channel has a place in each."""
    times = op.get("repeats", "dims")
    labels = [None] * (op.out.ndim - op.x.ndim) + flow.of(op.x)
    if len(times) != op.out.ndim:
        raise NoRule
    found = [label if label is None else label.repeat(n) for label, n in zip(labels, times, strict=True)]
    flow.put(op.out, found, zeros_stay(flow, op))


@rule("view_as_real", "view_as_real_copy")
def as_real(flow: Flow, op: Op) -> None:
    """A last dimension of two comes."""
    flow.put(op.out, [*flow.of(op.x), None], zeros_stay(flow, op))


@rule("view_as_complex")
def as_complex(flow: Flow, op: Op) -> None:
    """The last dimension, of two, goes."""
    flow.freeze(flow.of(op.x)[-1], "it is real and imaginary part")
    flow.put(op.out, flow.of(op.x)[:-1], zeros_stay(flow, op))


@rule("as_strided")
def as_strided(flow: Flow, op: Op) -> None:
    """Only where it changes nothing."""
    same = (op.x.shape, op.x.stride(), op.x.storage_offset()) == (
        op.out.shape,
        op.out.stride(),
        op.out.storage_offset(),
    )
    if not same:
        raise NoRule
    flow.put(op.out, flow.of(op.x), zeros_stay(flow, op))


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, op: Op) -> None:
    """Channels of a square become pixels."""
    labels, area = flow.of(op.x), op["upscale_factor"] ** 2
    label = labels[-3]
    if label is not None:
        rows = label.view(-1, area)
        flow.tie(rows[:, 1:], rows[:, :1])
        label = rows[:, 0]
    flow.freeze(labels[-2:], "it is space")
    flow.put(op.out, [*labels[:-3], label, None, None], zeros_stay(flow, op))


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, op: Op) -> None:
    """Pixels of a square become channels."""
    labels, area = flow.of(op.x), op["downscale_factor"] ** 2
    label = labels[-3]
    flow.freeze(labels[-2:], "it is space")
    flow.put(
        op.out,
        [*labels[:-3], None if label is None else label.repeat_interleave(area), None, None],
        zeros_stay(flow, op),
    )


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, op: Op) -> None:
    """Groups are dealt out like cards."""
    labels = flow.of(op.x)
    label = labels[1]
    if label is not None:
        flow.alike(label, op["groups"])
        label = label.view(op["groups"], -1).t().reshape(-1)
    flow.put(op.out, [labels[0], label, *labels[2:]], zeros_stay(flow, op))
