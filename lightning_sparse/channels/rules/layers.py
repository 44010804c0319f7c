"""Convolutions and matrix products: where channels are made, and where they are read."""

from torch import Tensor

from lightning_sparse.channels.flow import Flow, Label
from lightning_sparse.channels.labels import NO_CHANNEL
from lightning_sparse.channels.rules.registry import NoRule, Op, rule, zeros_stay

_CONVS = (
    "convolution convolution_overrideable conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "mkldnn_convolution cudnn_convolution cudnn_convolution_transpose miopen_convolution miopen_convolution_transpose"
)


@rule(*_CONVS.split())
def convolution(flow: Flow, op: Op) -> None:
    """Inputs are read, outputs are made; groups lose the same channels, depthwise layers follow their input."""
    weight, bias, groups = op["weight"], op.get("bias"), op.get("groups", default=1)
    x, transposed = flow.of(op.x), op.get("transposed", default="transpose" in op.name)
    if op.x.ndim != weight.ndim:  # no batch dimension
        raise NoRule
    flow.freeze(x[2:], "it is space to a convolution")
    flow.freeze(flow.of(weight)[2:], NO_CHANNEL)
    made = _transposed if transposed else _plain
    outputs = made(flow, x[1], flow.of(weight), (op.x.shape[1], op.out.shape[1]), groups)
    zero = flow.known(weight).zero
    if bias is not None:
        flow.tie(outputs, flow.of(bias)[0])
        zero = zero and flow.known(bias).zero
    flow.made(outputs)
    flow.put(op.out, [x[0], outputs] + [None] * (op.out.ndim - 2), zero)


def _plain(flow: Flow, inputs: Label, weight: list[Label], sizes: tuple[int, int], groups: int) -> Label:
    outputs = weight[0]
    if groups == 1:
        flow.tie(inputs, weight[1])
        flow.read(inputs)
    elif groups == sizes[0]:  # depthwise
        flow.tie(None if inputs is None else inputs.repeat_interleave(sizes[1] // groups), outputs)
    else:
        flow.tie(inputs, None if weight[1] is None else weight[1].repeat(groups))
        flow.read(inputs)
        flow.alike(outputs, groups)
    return outputs


def _transposed(flow: Flow, inputs: Label, weight: list[Label], sizes: tuple[int, int], groups: int) -> Label:
    flow.tie(inputs, weight[0])
    if groups == sizes[0] and groups > 1:  # depthwise
        flow.freeze(weight[1], "a depthwise layer has it in each group")
        return None if inputs is None else inputs.repeat_interleave(sizes[1] // groups)
    flow.read(inputs)
    flow.alike(weight[0], groups)
    return None if weight[1] is None else weight[1].repeat(groups)


def _contract(flow: Flow, op: Op, pair: tuple[Tensor, Tensor], a: Label, b: Label) -> None:
    """Sum over a dimension of both; of two weights it does not vanish where activations do."""
    flow.tie(a, b)
    flow.read(a)
    if op.fixed:
        flow.weighed(a, b)
    elif not any(flow.known(t).zero for t in pair):
        flow.lossy(a)


@rule("linear", "mkldnn_linear")
def linear(flow: Flow, op: Op) -> None:
    """The last dimension is read, another one made."""
    weight, bias = op["weight"], op.get("bias")
    x, w = flow.of(op.x), flow.of(weight)
    _contract(flow, op, (op.x, weight), x[-1], w[1])
    zero = flow.known(weight).zero
    if bias is not None:
        flow.tie(w[0], flow.of(bias)[0])
        zero = zero and flow.known(bias).zero
    flow.made(w[0])
    flow.put(op.out, [*x[:-1], w[0]], zero)


@rule("mm", "bmm", "addmm", "_addmm_activation", "baddbmm", "mv", "addmv", "dot", "vdot")
def product(flow: Flow, op: Op) -> None:
    """The last dimension of the left meets the last but one of the right."""
    adds = op.name in ("addmm", "_addmm_activation", "baddbmm", "addmv")
    left, right = op.inputs[1:3] if adds else op.inputs[:2]
    a, b = flow.of(left), flow.of(right)
    summed = -1 if right.ndim == 1 else -2
    _contract(flow, op, (left, right), a[-1], b[summed])
    if left.ndim == 3:
        flow.tie(a[0], b[0])
    labels = a[:-1] + ([] if right.ndim == 1 else [b[-1]])
    zeros = _rows_zero(flow, left, right)
    if adds:
        added = op.inputs[0]
        for d in range(1, added.ndim + 1):
            if added.shape[-d] == op.out.shape[-d] > 1:
                flow.tie(labels[-d], flow.of(added)[-d])
        zeros = zeros and flow.known(added).zero
    flow.made(labels[-1] if right.ndim > 1 else None)
    flow.put(op.out, labels, zeros)


def _rows_zero(flow: Flow, left: Tensor, right: Tensor) -> bool:
    """Whether the dimensions that stay are zero where channels are: each from its own factor."""
    factors = [(left, flow.of(left)[:-1])] + ([(right, flow.of(right)[-1:])] if right.ndim > 1 else [])
    return all(flow.known(t).zero for t, labels in factors if any(label is not None for label in labels))


_ATTENTION = (
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps"
)


@rule(*_ATTENTION.split())
def attention(flow: Flow, op: Op) -> None:
    """Query and key meet in the last dimension, key and value in the last but one; the scale follows the size."""
    query, key, value = op["query"], op["key"], op["value"]
    q, k, v = flow.of(query), flow.of(key), flow.of(value)
    flow.tie(q[-1], k[-1])
    flow.read(q[-1])
    flow.lossy(q[-1])
    flow.tie(k[-2], v[-2])
    flow.lossy(k[-2])
    for d in range(query.ndim - 2):
        for other, labels in ((key, k), (value, v)):
            ratio = query.shape[d] // other.shape[d]
            label, mine = labels[d], q[d]
            if label is not None and ratio > 1:
                label = label.repeat_interleave(ratio)
            if label is not None and mine is not None and label.shape != mine.shape:
                raise NoRule
            flow.tie(mine, label)
    mask = op.get("attn_mask", "attn_bias")
    if isinstance(mask, Tensor):
        for d in range(1, mask.ndim + 1):
            if mask.shape[-d] > 1:
                flow.tie(flow.of(mask)[-d], k[-2] if d == 1 else q[-d])
    flow.put(op.out, [*q[:-1], v[-1]], zeros_stay(flow, op))
    for extra in op.outputs[1:]:
        fits = extra.ndim == query.ndim - 1 and extra.shape == query.shape[:-1]
        if not fits and any(label is not None for label in q[:-1]):
            flow.freeze(q[:-1], "attention keeps a statistic of it")
        flow.put(extra, q[:-1] if fits else [None] * extra.ndim)


@rule("embedding")
def embedding(flow: Flow, op: Op) -> None:
    """Rows are looked up by number, so they stay; their width is made of channels."""
    table = flow.of(op["weight"])
    flow.freeze(table[0], NO_CHANNEL)
    flow.freeze(flow.of(op["indices"]), "it counts lookups")
    flow.made(table[1])
    flow.put(op.out, [None] * (op.out.ndim - 1) + [table[1]], flow.known(op["weight"]).zero)


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(flow: Flow, op: Op) -> None:
    """Sums of rows."""
    weight = op.inputs[0]
    table = flow.of(weight)
    flow.freeze(table[0], NO_CHANNEL)
    for t in op.inputs[1:]:
        flow.freeze(flow.of(t), "it counts lookups")
    flow.made(table[1])
    flow.put(op.out, [None, table[1]], flow.known(weight).zero)
    for extra in op.outputs[1:]:
        flow.put(extra, [None] * extra.ndim)


@rule("_trilinear")
def trilinear(flow: Flow, op: Op) -> None:
    """Products of three tensors, each with dimensions of size 1 put in, summed over some."""
    rows: list[list[Label]] = []
    for t, new in zip(op.inputs, (op["expand1"], op["expand2"], op["expand3"]), strict=True):
        labels = flow.of(t)
        for d in sorted(new):
            labels.insert(d, None)
        rows.append(labels)
    put_in = [set(op["expand1"]), set(op["expand2"]), set(op["expand3"])]
    result: list[Label] = []
    for d in range(len(rows[0])):
        there = [row[d] for row, new in zip(rows, put_in, strict=True) if d not in new]
        for other in there[1:]:
            flow.tie(there[0], other)
        if d in op["sumdim"]:
            flow.read(there[0])
        else:
            result.append(there[0])
    flow.made(flow.of(op.inputs[1])[0])
    flow.put(op.out, result, zeros_stay(flow, op))


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: Flow, op: Op) -> None:
    """A direction and its length for each output."""
    v, g, dim = flow.of(op["v"]), flow.of(op["g"]), op["dim"]
    flow.tie(v[dim], g[dim])
    for d, label in enumerate(v):
        if d != dim:
            flow.lossy(label)  # the length of a filter is over what it reads
    flow.put(op.out, v, flow.known(op["g"]).zero)
    for extra in op.outputs[1:]:
        flow.put(extra, g, flow.known(op["g"]).zero)


@rule("mkldnn_rnn_layer")
def recurrent(flow: Flow, op: Op) -> None:
    """One layer of an LSTM: what it reads may shrink, its own width not."""
    x, first = flow.of(op.x), flow.of(op.inputs[1])
    _contract(flow, op, (op.x, op.inputs[1]), x[-1], first[1])
    for t in op.inputs[2:]:
        flow.freeze(flow.of(t), "a recurrent layer has this width")
    flow.freeze(first[0], "a recurrent layer has this width")
    for out in op.outputs:
        flow.put(out, [None] * out.ndim)


@rule("ger", "outer")
def outer(flow: Flow, op: Op) -> None:
    """Two vectors make a matrix."""
    a, b = op.inputs[:2]
    flow.put(op.out, [flow.of(a)[0], flow.of(b)[0]], zeros_stay(flow, op))
