"""Quantization after training, in one call, without a Trainer."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import nn

from lightning_sparse.channels.quiet import evaluating, plain_paths
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import call
from lightning_sparse.quant.layers import UNCALLED, candidates, fixed_bits, parameter
from lightning_sparse.quant.options import wrong_act_bits, wrong_bits
from lightning_sparse.quant.quantization import Quantization, remember
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find


def calibrate(
    module: nn.Module,
    batches: Iterable[Any],
    bits: int | Mapping[str, int | None] = 8,
    *,
    act_bits: int | None = 8,
    include: list[str] | None = None,
    exclude: list[str] | tuple[str, ...] = (),
) -> Quantization:
    """How a trained module is quantized: bits of its weights, and ranges of its activations on some data.

    The module stays as it is, and remembers the answer: exports need not be given it. Five bits and more lose next to
    nothing this way; for fewer train with :class:`~lightning_sparse.QuantizeSparse`.

    Args:
        module: any module, trained and pruned; zeros of its weights stay zeros of the integers.
        batches: of inputs, each what the module is called with: a tensor, a tuple of arguments or a dict of keyword
            arguments. Of a loader of pairs: ``(x for x, y in loader)``. Some hundreds of samples do.
        bits: of all weights, or by glob; None leaves a layer in float.
        act_bits: of activations, 4 to 8; None leaves them in float.
        include: globs of layers to quantize; None takes all Linear layers and convolutions.
        exclude: globs of layers that stay in float.

    Raises:
        ValueError: on wrong arguments, all at once; without data; on weights or activations with NaN or infinity.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = calibrate(net, [torch.randn(16, 4) for _ in range(4)], {"2": 8, "*": 7})
        >>> {name: layer.bits for name, layer in found.layers.items()}, sorted(found.ranges)
        ({'0': 7, '2': 8}, ['0:in', '2:in'])
    """
    raise_problems(_problems(module, bits, act_bits), "calibrate")
    data = iter(batches)
    first = next(data, None)
    if first is None:
        raise ValueError("calibrate: batches is empty; ranges of activations are found on data")
    chosen = candidates(module, include, exclude)
    wanted, unwanted = fixed_bits(list(chosen.modules), bits)
    with evaluating(module), plain_paths():
        layers = find(module, lambda: call(module, first), wanted, activations=act_bits is not None)
        uncalled = {parameter(name): UNCALLED for name in wanted if name not in layers}
        quantizer = Quantizer(module, layers, act_bits=act_bits, left={**chosen.left, **unwanted, **uncalled})
        try:
            if act_bits is not None:
                quantizer.calibrate(lambda batch=batch: call(module, batch) for batch in chain([first], data))  # type: ignore[misc]
            found, odd = quantizer.quantization, quantizer.odd
        finally:
            quantizer.detach()
    found.codes(module)  # refuses weights that are no numbers
    if odd:
        raise ValueError(f"calibrate: {odd} times activations had NaN or infinity, which no range holds")
    remember(module, found)
    return found


def _problems(module: Any, bits: Any, act_bits: Any) -> list[str]:
    found = [] if isinstance(module, nn.Module) else [f"module must be a torch.nn.Module, got {module!r}"]
    return found + wrong_bits(bits) + wrong_act_bits(act_bits)
