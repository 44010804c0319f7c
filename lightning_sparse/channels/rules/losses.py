"""Losses of a training step: what is compared with targets stays as it is."""

from lightning_sparse.channels.flow import Flow
from lightning_sparse.channels.rules.registry import Op, rule

_LOSSES = (
    "nll_loss nll_loss_forward nll_loss2d nll_loss2d_forward cross_entropy_loss mse_loss smooth_l1_loss huber_loss "
    "binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss multi_margin_loss "
    "multilabel_margin_loss_forward kl_div _ctc_loss"
)


@rule(*_LOSSES.split())
def loss(flow: Flow, op: Op) -> None:
    """All dimensions of all inputs are frozen: classes and targets have numbers."""
    for tensor in op.inputs:
        flow.freeze(flow.of(tensor), "a loss is taken of it")
    for out in op.outputs:
        flow.put(out, [None] * out.ndim)
