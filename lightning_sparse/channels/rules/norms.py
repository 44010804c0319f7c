"""Normalisation layers."""

from torch import Tensor

from lightning_sparse.channels.flow import Flow
from lightning_sparse.channels.rules.registry import NoRule, Op, rule

_BATCH = (
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm _batch_norm_impl_index"
)


def _affine(flow: Flow, op: Op) -> bool:
    """Whether a channel whose weight, bias and input are zero comes out as zero."""
    weight, bias = op.get("weight"), op.get("bias")
    known = [t for t in (weight, bias) if isinstance(t, Tensor)]
    if any(not flow.known(t).zero for t in known):
        return False
    return weight is not None or flow.known(op.x).zero  # without weights, the running mean of zeros is zero


@rule(*_BATCH.split())
def batch_norm(flow: Flow, op: Op) -> None:
    """Statistics, weight and bias for each channel; statistics over the other dimensions."""
    labels = flow.of(op.x)
    for t in op.inputs[1:]:
        if t.ndim == 1 and t.shape[0] == op.x.shape[1]:
            flow.tie(flow.of(t)[0], labels[1])
    for d, label in enumerate(labels):
        if d != 1:
            flow.lossy(label)
    flow.put(op.out, labels, _affine(flow, op))
    for extra in op.outputs[1:]:
        flow.put(extra, [labels[1] if extra.ndim == 1 and extra.shape[0] == op.x.shape[1] else None] * extra.ndim)


@rule("batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt", "batch_norm_gather_stats")
def synchronised(flow: Flow, op: Op) -> None:
    """The steps of SyncBatchNorm; what it sends to other ranks has no labels, for its shape follows the input's."""
    label = flow.of(op.x)[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        t = op.get(name)
        if isinstance(t, Tensor):
            flow.tie(flow.of(t)[0], label)
    if op.name == "batch_norm_elemt":
        flow.put(op.out, flow.of(op.x), _affine(flow, op))
        return
    for out in op.outputs:
        flow.put(out, [None] * out.ndim)


@rule("instance_norm")
def instance_norm(flow: Flow, op: Op) -> None:
    """As a batch of its own for each sample."""
    labels = flow.of(op.x)
    for t in op.inputs[1:]:
        flow.tie(flow.of(t)[0], labels[1])
    flow.put(op.out, labels, _affine(flow, op))


@rule("native_group_norm", "group_norm")
def group_norm(flow: Flow, op: Op) -> None:
    """Statistics over a group of channels; groups lose the same ones."""
    labels, count = flow.of(op.x), op.get("group", "num_groups")
    for name in ("weight", "bias"):
        if (t := op.get(name)) is not None:
            flow.tie(flow.of(t)[0], labels[1])
    if (label := labels[1]) is not None:
        flow.alike(label, count)
        if count < len(label):
            flow.lossy(label)
    for d, label in enumerate(labels):
        if d > 1:
            flow.lossy(label)
    flow.put(op.out, labels, _affine(flow, op))
    for extra in op.outputs[1:]:
        flow.put(extra, [None] * extra.ndim)


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(flow: Flow, op: Op) -> None:
    """Statistics over the last dimensions."""
    labels, width = flow.of(op.x), len(op["normalized_shape"])
    for name in ("weight", "bias"):
        if (t := op.get(name)) is not None:
            for d in range(1, t.ndim + 1):
                flow.tie(flow.of(t)[-d], labels[-d])
    for label in labels[op.x.ndim - width :]:
        flow.lossy(label)
    flow.put(op.out, labels, _affine(flow, op))
    for extra in op.outputs[1:]:
        if extra.ndim != op.x.ndim:
            raise NoRule
        flow.put(extra, [own if extra.shape[d] == op.x.shape[d] else None for d, own in enumerate(labels)])
