"""Codes that are given for a module's weights: whether they can be what is saved of them."""

from collections.abc import Mapping

from torch import Tensor

from lightning_sparse.core.select import clean
from lightning_sparse.export.state import State
from lightning_sparse.quant.grid import BITS, Codes, levels


def codes_for(state: State, given: Mapping[str, Codes] | None) -> tuple[dict[str, Codes], list[str]]:
    """The codes by the names of ``state``, on the CPU, and what is wrong with them."""
    if given is None:
        return {}, []
    if not isinstance(given, Mapping):
        return {}, [f"codes must be a mapping of names to Codes, got {type(given).__name__}"]
    found: dict[str, Codes] = {}
    problems = []
    for key, codes in given.items():
        name = clean(key) if isinstance(key, str) else ""
        name = state.aliases.get(name, name)
        weight = state.tensors.get(name)
        if weight is None:
            problems.append(f"codes[{key!r}] are of no tensor of the module")
        elif why := _wrong(codes, weight):
            problems.append(f"codes[{key!r}] {why}")
        elif name in found and not _same(found[name], codes):
            problems.append(f"codes[{key!r}] differ from those of a weight that it is tied to")
        else:
            found[name] = codes
    return found, problems


def _wrong(codes: object, weight: Tensor) -> str:
    """Why these cannot be the codes of a weight; "" if they can."""
    if not isinstance(codes, Codes):
        return f"must be Codes, got {type(codes).__name__}"
    if why := _wrong_form(codes, weight):
        return why
    if not bool((codes.scale.isfinite() & (codes.scale > 0)).all()):
        return "have a scale that is not positive and finite"
    if codes.codes.numel():
        least, most = codes.codes.aminmax()
        if max(-int(least), int(most)) > levels(codes.bits):
            return f"reach from {int(least)} to {int(most)}, too far for {codes.bits} bits"
    revived = int((codes.codes.to(weight.device).ne(0) & weight.eq(0)).sum())
    return f"are of another state: {revived} are not zero where the weight is" if revived else ""


def _wrong_form(codes: Codes, weight: Tensor) -> str:
    if not weight.is_floating_point():
        return f"are of a tensor of {str(weight.dtype).removeprefix('torch.')}"
    if codes.codes.shape != weight.shape:
        return f"have shape {list(codes.codes.shape)}, the weight {list(weight.shape)}"
    kinds = [str(one.dtype).removeprefix("torch.") for one in (codes.codes, codes.scale)]
    if kinds != ["int8", "float32"]:
        return f"must be int8 with scales of float32, got {kinds[0]} with {kinds[1]}"
    if codes.bits not in BITS:
        return f"must have 2 to 8 bits, got {codes.bits!r}"
    if not 0 <= codes.axis < weight.ndim or list(codes.scale.shape) != [weight.shape[codes.axis]]:
        return f"have scales of shape {list(codes.scale.shape)} for dimension {codes.axis} of {list(weight.shape)}"
    return ""


def _same(one: Codes, other: Codes) -> bool:
    forms = one.axis == other.axis and one.bits == other.bits and one.scale.equal(other.scale)
    return forms and one.codes.equal(other.codes)
