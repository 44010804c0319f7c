"""Parameters and buffers whose shape only the first batch tells."""

from torch import nn


def shapeless(model: nn.Module) -> list[str]:
    """A sentence for each.

    Example:
        >>> shapeless(nn.LazyLinear(2, bias=False))
        ['weight has no shape yet; run one batch through the model first']
    """
    lazy = [n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    lazy += [n for n, b in model.named_buffers() if isinstance(b, nn.parameter.UninitializedBuffer)]
    return [f"{n} has no shape yet; run one batch through the model first" for n in lazy]
