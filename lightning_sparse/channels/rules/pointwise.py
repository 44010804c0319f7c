"""Element by element, with broadcasting."""

from collections.abc import Sequence

from torch import Tensor

from lightning_sparse.channels.flow import Flow, Label
from lightning_sparse.channels.rules.registry import NoRule, Op, names, rule

# f(0) = 0 in the only, or in every, argument
_ALL_ZERO = names(
    "add sub rsub relu gelu silu mish tanh hardtanh relu6 hardswish leaky_relu elu selu celu neg abs sin tan asin "
    "atan sinh asinh atanh erf expm1 log1p sqrt sign trunc round floor ceil frac softsign hardshrink softshrink "
    "tanhshrink clone _to_copy detach alias lift_fresh contiguous to maximum minimum nan_to_num dropout "
    "native_dropout square _prelu_kernel prelu lerp threshold _fused_moving_avg_obs_fq_helper"
)
_ANY_ZERO = frozenset(("mul",))
_FIRST_ZERO = frozenset(("div", "pow", "copy", "fmod", "remainder"))


def spread(flow: Flow, inputs: Sequence[Tensor], out: Tensor, zero: bool = False) -> None:
    """Labels of tensors that are broadcast to ``out``; a dimension of channels beside one of constants is frozen."""
    labels: list[Label] = [None] * out.ndim
    free: set[int] = set()
    for d, n in enumerate(out.shape):
        if n <= 1:
            continue
        at = [(t, d - out.ndim + t.ndim) for t in inputs if t.ndim >= out.ndim - d and t.shape[d - out.ndim] == n]
        met = [flow.of(t)[k] for t, k in at if k not in flow.known(t).free]
        if not met and at:
            free.add(d)
        found = [label for label in met if label is not None]
        if not found:
            continue
        for label in found[1:]:
            flow.tie(found[0], label)
        if len(found) < len(met):
            flow.tie(found[0], None)
        labels[d] = found[0]
    flow.put(out, labels, zero, free)


def _zero(flow: Flow, op: Op) -> bool:
    flags = [flow.known(t).zero for t in op.inputs if flow.labelled(t)]
    if op.name in _ANY_ZERO:
        return any(flags)
    if op.name in _FIRST_ZERO:
        second = op.get("exponent", "src")
        known = flow.known(op.x).zero and flow.labelled(op.x)
        if op.name == "copy":
            return isinstance(second, Tensor) and flow.known(second).zero and flow.labelled(second)
        return known and not (op.name == "pow" and not (isinstance(second, int | float) and second > 0))
    if op.name in ("add", "sub", "rsub") and any(isinstance(op.get(n), int | float) and op.get(n) for n in ("other",)):
        return False
    if op.name in ("hardtanh", "threshold"):
        return all(flags) and op.name == "hardtanh" and op["min_val"] <= 0 <= op["max_val"]
    return all(flags) and op.name in _ALL_ZERO


_KEEP = names(
    "clone _to_copy detach alias lift_fresh lift_fresh_copy contiguous to fill zero zeros_like ones_like empty_like "
    "full_like rand_like randn_like randint_like bernoulli uniform normal exponential random log_normal cauchy "
    "geometric copy masked_fill where native_dropout dropout _dropout_impl gelu silu relu hardtanh leaky_relu elu "
    "mish hardswish hardsigmoid softplus log_sigmoid_forward rrelu_with_noise tril triu relu6 selu celu threshold "
    "nan_to_num clamp lerp addcmul addcdiv bitwise_not logical_not conj _conj resolve_conj "
    "_fused_moving_avg_obs_fq_helper"
)


@rule(*sorted(_KEEP))
def pointwise(flow: Flow, op: Op) -> None:
    """Every output has the shape of the inputs, broadcast."""
    if op.name in ("tril", "triu") and any(label is not None for label in flow.of(op.x)[-2:]):
        raise NoRule
    for out in op.outputs:
        inputs = [t for t in op.inputs if t.ndim <= out.ndim]
        if out.numel() == 0 and any(flow.labelled(t) for t in op.inputs):  # an empty side output (log_sigmoid)
            flow.put(out, [None] * out.ndim)
            continue
        if any(flow.labelled(t) for t in op.inputs if t.ndim > out.ndim):
            raise NoRule
        spread(flow, inputs, out, _zero(flow, op))


@rule("new_empty", "new_zeros", "new_ones", "new_full", "empty_strided", "new_empty_strided")
def fresh(flow: Flow, op: Op) -> None:
    """Constants of any shape; but what is filled after ``new_empty`` (noise, circular padding) follows the input."""
    labels: list[Label] = [None] * op.out.ndim
    if op.name == "new_empty" and op.out.ndim == op.x.ndim:
        sizes = zip(flow.of(op.x), op.out.shape, op.x.shape, strict=True)
        labels = [label if n == m else None for label, n, m in sizes]
    flow.put(op.out, labels)


@rule("_prelu_kernel", "prelu")
def prelu(flow: Flow, op: Op) -> None:
    """A slope for each channel; torch reshapes it before the kernel, so that it broadcasts."""
    weight = op["weight"]
    if op.name == "prelu" and weight.numel() > 1:
        flow.tie(flow.of(op.x)[1], flow.of(weight)[0])
        flow.put(op.out, flow.of(op.x), flow.known(op.x).zero)
        return
    spread(flow, [op.x, weight], op.out, flow.known(op.x).zero)
