"""Pooling, resizing, padding: channels pass, and space has none."""

import re

from lightning_sparse.channels.flow import Flow
from lightning_sparse.channels.rules.registry import NoRule, Op, rule, zeros_stay

_SPACES = [
    "max_pool{}d",
    "max_pool{}d_with_indices",
    "avg_pool{}d",
    "adaptive_avg_pool{}d",
    "_adaptive_avg_pool{}d",
    "adaptive_max_pool{}d",
    "mkldnn_max_pool{}d",
    "quantized_max_pool{}d",
    "cudnn_max_pool{}d",
    "lp_pool{}d",
    "reflection_pad{}d",
    "replication_pad{}d",
    "upsample_nearest{}d",
    "_upsample_nearest_exact{}d",
    "upsample_linear{}d",
    "upsample_bilinear{}d",
    "_upsample_bilinear{}d_aa",
    "upsample_bicubic{}d",
    "_upsample_bicubic{}d_aa",
    "upsample_trilinear{}d",
    "fractional_max_pool{}d",
]
_KEEP_ZERO = re.compile("pool|pad|upsample")


@rule(*[name.format(n) for name in _SPACES for n in (1, 2, 3)])
def space(flow: Flow, op: Op) -> None:
    """The last one, two or three dimensions are space."""
    digit = re.search(r"(\d)d", op.full_name)
    assert digit is not None, "names have it"
    n, labels = int(digit.group(1)), flow.of(op.x)
    if any(flow.labelled(t) for t in op.inputs[1:]):
        raise NoRule
    flow.freeze(labels[-n:], "it is space")
    for out in op.outputs:
        if out.ndim != op.x.ndim or out.shape[:-n] != op.x.shape[:-n]:
            raise NoRule
        flow.put(out, labels[:-n] + [None] * n, zeros_stay(flow, op))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(flow: Flow, op: Op) -> None:
    """Values are looked up in space."""
    labels = flow.of(op.x)
    flow.freeze(labels[2:], "it is space")
    flow.freeze(flow.of(op.inputs[1]), "it is space")
    flow.put(op.out, labels[:2] + [None] * (op.out.ndim - 2), flow.known(op.x).zero)


@rule("im2col")
def im2col(flow: Flow, op: Op) -> None:
    """Each channel becomes one for each place of the kernel."""
    labels, (high, wide) = flow.of(op.x), op["kernel_size"]
    if op.x.ndim != 4:
        raise NoRule
    flow.freeze(labels[2:], "it is space")
    label = None if labels[1] is None else labels[1].repeat_interleave(high * wide)
    flow.put(op.out, [labels[0], label, None], flow.known(op.x).zero)


@rule("col2im")
def col2im(flow: Flow, op: Op) -> None:
    """The channels of the places of a kernel become one."""
    labels, (high, wide) = flow.of(op.x), op["kernel_size"]
    if op.x.ndim != 3:
        raise NoRule
    flow.freeze(labels[2], "it is space")
    label = labels[1]
    if label is not None:
        rows = label.view(-1, high * wide)
        flow.tie(rows[:, 1:], rows[:, :1])
        label = rows[:, 0]
    flow.put(op.out, [labels[0], label, None, None], flow.known(op.x).zero)
