"""What a penalty is put on, and what cannot be."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.select import TRANSPOSED, Target, clean, inputs_first, matches, select, targets
from lightning_sparse.core.sharded import is_sharded
from lightning_sparse.core.values import wrong_globs
from lightning_sparse.penalties.base import Penalty
from lightning_sparse.penalties.formulas import PENALTIES
from lightning_sparse.penalties.strength import strength_problems

On = Literal["weights", "gammas", "activations"]
# What can be zero or near it; not Softmax, whose outputs always sum to 1, nor Sigmoid, whose middle is not zero.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
)


def argument_problems(
    penalty: Any, strength: Any, on: str, proximal: bool, include: Any = None, exclude: Any = ()
) -> list[str]:
    """What cannot be right whatever the model: a sentence each.

    Example:
        >>> from lightning_sparse.penalties import Hoyer
        >>> argument_problems(Hoyer(), 1e-4, "weights", proximal=True)
        ['Hoyer() has no proximal operator; leave proximal=False, or take l1, elastic or group_lasso']
    """
    found = strength_problems(strength)
    if not isinstance(on, str) or on not in ("weights", "gammas", "activations"):
        found.append(f"on must be 'weights', 'gammas' or 'activations', got {on!r}")
    if proximal and on == "activations":
        found.append("proximal=True moves weights, not activations; leave proximal=False")
    found += wrong_globs("include", () if include is None else include) + wrong_globs("exclude", exclude)
    if not isinstance(proximal, bool):
        return [*found, f"proximal must be True or False, got {proximal!r}"]
    if not isinstance(penalty, Penalty):
        return [
            *found,
            f"unknown penalty {penalty!r}; there are {', '.join(PENALTIES)}, or give an object such as L1()",
        ]
    if penalty.grouped and on in ("gammas", "activations"):
        found.append(f"{penalty!r} is for weights, on={on!r} has no groups; take 'l1', or on='weights'")
    elif proximal and (problem := penalty.without_prox()):
        found.append(problem)
    return found


def chosen_weights(
    model: nn.Module, penalty: Penalty, include: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[list[Target], list[str]]:
    """The weights to penalize, and why the penalty does not fit others that the default would take.

    Raises:
        ValueError: as :func:`~lightning_sparse.core.select.select`, or if the penalty does not fit what was asked for.
    """
    found, odd = [], []
    possible = select(model, include, exclude)
    if spread := [t.name for t in possible if is_sharded(t.weight)]:
        raise ValueError(f"penalties on weights that processes share are not supported: {', '.join(spread)}; use DDP")
    for target in possible:
        if problem := _unfit(penalty, target):
            odd.append(f"{target.name}: {problem}")
        else:
            found.append(target)
    if odd and (include is not None or not found):
        raise_problems([f"{penalty!r} does not fit {text}; exclude it" for text in odd], "weights")
    return found, odd


def chosen_gammas(model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]) -> list[Target]:
    """The weights of BatchNorm layers.

    Raises:
        ValueError: if the model has none, or nothing is left.
    """
    norms = nn.modules.batchnorm._BatchNorm
    found = [t for t, owners in targets(model) if isinstance(owners[0], norms) and t.attribute == "weight"]
    if not found:
        text = "the model has no BatchNorm with weights (affine=True): there are no gammas; take on='weights'"
        raise ValueError(text)
    names = _globbed([t.name for t in found], include, exclude, "gamma", matches)
    trained = [t for t in found if t.name in names and t.weight.requires_grad]
    if not trained:
        raise ValueError(f"every chosen gamma is frozen (requires_grad=False): {', '.join(names)}")
    return trained


def chosen_activations(model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose outputs to penalize, by name.

    Raises:
        ValueError: if there are none, or a glob fits nothing.
    """
    modules = {clean(name): module for name, module in model.named_modules() if name}
    if include is None:
        modules = {name: module for name, module in modules.items() if isinstance(module, ACTIVATIONS)}
        if not modules:
            raise ValueError(
                "the model has no activation modules such as ReLU (calls of torch.nn.functional are not seen); "
                "name the modules whose outputs are meant with include=[...]"
            )
    names = _globbed(list(modules), include, exclude, "module", _is_named)
    return {name: modules[name] for name in names}


def outputs_first(target: Target, tensor: Tensor) -> Tensor:
    """A view of the weight or its gradient with outputs in dimension 0 (transposed convolutions have inputs there)."""
    module = target.module
    return tensor.transpose(0, 1) if inputs_first(module) and getattr(module, "groups", 1) == 1 else tensor


def _unfit(penalty: Penalty, target: Target) -> str:
    groups = getattr(target.module, "groups", 1)
    if penalty.grouped and groups > 1 and isinstance(target.module, TRANSPOSED):
        return f"the outputs of a transposed convolution of {groups} groups are not in one dimension"
    return penalty.unfit(outputs_first(target, target.weight), groups)


def _is_named(name: str, globs: Sequence[str]) -> bool:
    """A module by its own name alone: the output of ``encoder`` is not that of ``encoder.0``."""
    return any(fnmatchcase(name, glob) for glob in globs)


def _globbed(
    names: list[str],
    include: Sequence[str] | None,
    exclude: Sequence[str],
    what: str,
    fits: Callable[[str, Sequence[str]], bool],
) -> list[str]:
    problems = []
    for kind, globs in (("include", include or ()), ("exclude", exclude)):
        if lost := [glob for glob in globs if not any(fits(name, [glob]) for name in names)]:
            problems.append(f"{kind}={lost} matches no {what}; candidates: {', '.join(names)}")
    kept = [n for n in names if (include is None or fits(n, include)) and not fits(n, exclude)]
    if not kept and not problems:
        problems.append(f"nothing is left to penalize; candidates: {', '.join(names)}")
    raise_problems(problems, f"choosing by {what}")
    return kept
