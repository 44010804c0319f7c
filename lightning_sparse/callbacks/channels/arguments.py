"""Arguments of a BNChannelPruner: those that cannot be right, whatever the model, and how it chooses."""

from typing import TYPE_CHECKING

from lightning_sparse.callbacks.channels.schedule import moment_problems
from lightning_sparse.channels.criteria import criterion_problems
from lightning_sparse.channels.options import Choice
from lightning_sparse.core.values import is_number, is_whole, wrong_flags, wrong_globs
from lightning_sparse.penalties.strength import strength_problems

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner

_PENALTIES = ("subgradient", "proximal", "group_lasso")
_SHRINKS = ("live", "end", "never")


def problems(pruner: "BNChannelPruner") -> list[str]:
    """A sentence for each problem."""
    found = choice(pruner).problems()
    found += criterion_problems(pruner.criterion) + moment_problems(pruner.at, pruner.every, pruner.at_steps)
    found += wrong_globs("exclude", pruner.exclude) + _penalty_problems(pruner)
    if not isinstance(pruner.shrink, str) or pruner.shrink not in _SHRINKS:
        found.append(f"shrink must be one of {', '.join(map(repr, _SHRINKS))}, got {pruner.shrink!r}")
    elif pruner.shrink != "live" and pruner.target == "latency" and (pruner.every or _several(pruner)):
        found.append("target='latency' cuts on trial, which channels masked before exclude; give shrink='live'")
    for name, least in (("batches", 1), ("seed", None)):
        value = getattr(pruner, name)
        if not is_whole(value) or (least is not None and value < least):
            found.append(f"{name} must be a whole number{'' if least is None else ' from 1 on'}, got {value!r}")
    found += wrong_flags(pruner, "decay_gammas", "compensate", "reset_monitors", "restore_rng")
    return found + ([] if isinstance(pruner.name, str) else [f"name must be str, got {pruner.name!r}"])


def choice(pruner: "BNChannelPruner", keep: float | None = None) -> Choice:
    """How the pruner chooses; ``keep`` is a share of what is there now, None takes its own."""
    share = pruner.keep if keep is None else keep
    return Choice(
        share, pruner.scope, pruner.target, pruner.threshold, pruner.round_to, pruner.min_channels, pruner.cap
    )


def _several(pruner: "BNChannelPruner") -> bool:
    listed = [moments for moments in (pruner.at, pruner.at_steps) if isinstance(moments, list | tuple)]
    return any(len(moments) > 1 for moments in listed)


def _penalty_problems(pruner: "BNChannelPruner") -> list[str]:
    found = []
    if pruner.penalty is not None and not (isinstance(pruner.penalty, str) and pruner.penalty in _PENALTIES):
        found.append(f"penalty must be one of {', '.join(map(repr, _PENALTIES))}, or None, got {pruner.penalty!r}")
    if isinstance(pruner.l1, str):
        found += [] if pruner.l1 == "auto" else [f"l1 must be a number, a Schedule or 'auto', got {pruner.l1!r}"]
    else:
        found += [text.replace("strength", "l1", 1) for text in strength_problems(pruner.l1)]
    if not is_number(pruner.ratio) or not 0 < pruner.ratio < 1:
        found.append(f"ratio must be a share between 0 and 1, got {pruner.ratio!r}")
    if pruner.gamma_init is not None and not is_number(pruner.gamma_init):
        found.append(f"gamma_init must be a number or None, got {pruner.gamma_init!r}")
    return found
