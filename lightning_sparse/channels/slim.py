"""A plain module gets smaller, in place, by one call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.collect import Collector, gather
from lightning_sparse.channels.compensate import Calibration
from lightning_sparse.channels.criteria import criterion_problems, named
from lightning_sparse.channels.criterion import Criterion
from lightning_sparse.channels.decide import decide
from lightning_sparse.channels.journal import undoable
from lightning_sparse.channels.options import Choice, Scope, Target
from lightning_sparse.channels.parts import excluded
from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.report import ChannelReport, make_report
from lightning_sparse.channels.runs import each
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.channels.trace import analyse
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.flops import batch_size, call
from lightning_sparse.core.probe import Loss, eval_mode, untouched_randomness
from lightning_sparse.core.sharded import is_sharded
from lightning_sparse.core.values import wrong_globs


def slim(
    module: nn.Module,
    example_inputs: Any,
    keep: float = 0.5,
    *,
    criterion: str | Criterion = "l1",
    scope: Scope = "layer",
    target: Target = "channels",
    threshold: float | None = None,
    round_to: int | None = 1,
    min_channels: int = 1,
    cap: float | None = None,
    exclude: Sequence[str] = (),
    compensate: bool = True,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> ChannelReport:
    """Cut channels out of a module, in place: what is left is a plain, smaller, dense module.

    Parameters keep their identity and names; shapes and attributes (``out_channels`` ...) follow. The module runs a few
    times on ``example_inputs``, in evaluation mode. On any error it is exactly as it was. Make optimizers afterwards,
    or clear their state: :class:`~lightning_sparse.BNChannelPruner` is for cutting while a model trains.

    Args:
        module: any module that is trained already.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keyword arguments. Where
            ``batches`` are not given, criteria and ``target="latency"`` are measured on them.
        keep: share that stays, in (0, 1]: of each axis, or of all channels, FLOPs, parameters, latency.
        criterion: "gamma", "bn_var", "bn_std", "l1", "l2", "activation", "taylor", "sensitivity", "random", or a
            :class:`Criterion`.
        scope: "layer": every axis keeps the same share; "global": all channels compete.
        target: what ``keep`` is a share of: "channels", "flops", "params" or "latency" (measured here and now).
        threshold: instead of ``keep``: channels whose score is strictly above it stay.
        round_to: counts that stay are multiples of it; None takes what the device computes in.
        min_channels: at least so many stay on each axis.
        cap: no axis loses more than this share.
        exclude: globs of layers and parameters that keep their outputs whole.
        compensate: fold what removed channels gave to the next layers into these: constants (gamma 0, beta not 0), and
            with ``batches`` the means of all.
        batches: data for "taylor", "activation" and the means.
        loss: of the module and one of the batches; "taylor" differentiates it.

    Returns:
        What was cut, what was not and why; ``print`` it.

    Raises:
        ValueError: on wrong arguments, all at once; if nothing can be cut, with the reasons; on a target that cannot be
            met, with the least that can.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> print(slim(model, torch.zeros(1, 1, 8, 8), keep=0.5))
        axis   channels  stay  parameters  stay   FLOPs    stay
        0             8     4          96    48  5.18 k  2.59 k
        3             3     3         219   111  6.91 k  3.46 k  the model's output
        total         8     4         315   159  12.1 k  6.05 k
        >>> model[0].out_channels
        4
    """
    wrong = _problems(module, example_inputs, criterion, exclude, compensate, (batches, loss))
    choice = Choice(keep, scope, target, threshold, round_to, min_channels, cap)
    raise_problems(wrong + choice.problems(), "slim")
    data = _Data(module, lambda: call(module, example_inputs), batches, loss)
    graph = probe(module, analyse(module, data.run), data.run, round_to or 1)
    why = excluded(module, graph, exclude)
    if len(why) == len(graph.atoms):
        raise ValueError(_nothing(graph, why))
    calibration = Calibration(module, graph) if compensate else None
    scores, unseen = _scores(data, graph, named(criterion), calibration)
    why = {**unseen, **why}
    free = {name: score for name, score in scores.items() if name not in why}
    if not free:
        raise ValueError(_nothing(graph, why))
    decision = decide(module, graph, free, data.run, choice)
    notes = [_incomparable(named(criterion))] if scope == "global" and not named(criterion).comparable else []
    folding = calibration.fold(decision.kept, constant_only=batches is None) if calibration else None
    try:
        report = make_report(
            module,
            graph,
            decision.kept,
            why=why,
            notes=[*notes, *(folding.notes if folding else ())],
            latency=decision.latency,
            samples=batch_size(example_inputs) or 1,
        )
        shrink(module, graph, decision.kept)
    except BaseException:
        if folding:
            folding.undo()
        raise
    return report


class _Data(NamedTuple):
    """What a module may be run on."""

    module: nn.Module
    run: Callable[[], Any]
    batches: Iterable[Any] | None
    loss: Loss | None


def _scores(
    data: _Data, graph: Graph, criterion: Criterion, calibration: Calibration | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scores by axis, and why others have none; the calibration sees a pass too. One pass serves both if it can."""
    module, run, batches, loss = data
    collector = Collector(module, graph, criterion)
    with undoable(module):
        if calibration and criterion.asks in ("activations", "gradients"):
            with calibration:
                gather(collector, run, batches, loss)
        else:
            gather(collector, run, batches, loss)
            if calibration:
                with eval_mode(module), untouched_randomness(), torch.no_grad(), calibration:
                    for _ in each(module, run, batches, loss):
                        pass
    return collector.scores(), collector.unseen


def _problems(
    module: Any, example_inputs: Any, criterion: Any, exclude: Any, compensate: Any, data: tuple[Any, Any]
) -> list[str]:
    if not isinstance(module, nn.Module):
        return [f"module must be a torch.nn.Module, got {module!r}"]
    found = [] if example_inputs is not None else ["example_inputs is None; give what the module is called with"]
    wrong_criterion = criterion_problems(criterion)
    found += wrong_criterion
    found += wrong_globs("exclude", exclude)
    if not isinstance(compensate, bool):
        found.append(f"compensate must be True or False, got {compensate!r}")
    batches, loss = data
    if (batches is None) != (loss is None):
        found.append("batches= and loss= (a function of module and batch) go together; give both or none")
    elif not wrong_criterion and named(criterion).asks == "gradients" and batches is None:
        found.append(f"criterion {criterion!r} takes gradients of a loss: give batches= and loss=")
    if shared := [name for name, parameter in module.named_parameters() if is_sharded(parameter)]:
        found.append(f"weights that processes share cannot be cut: {', '.join(shared[:3])} ...; cut before sharding")
    return found


def _nothing(graph: Graph, why: Mapping[str, str]) -> str:
    """That nothing can be cut, and why."""
    reasons: dict[str, list[str]] = {}
    for name, reason in [*why.items(), *graph.frozen.items()]:
        reasons.setdefault(reason, []).append(name)
    lines = [f"  - {', '.join(names[:4])}{' ...' * (len(names) > 4)}: {text}" for text, names in reasons.items()]
    return "slim: nothing can be cut\n" + "\n".join(lines or ["  - the module has no layers with channels"])


def _incomparable(criterion: Criterion) -> str:
    return f"scores of {criterion!r} are not comparable between layers, and here they competed; scope='layer' is safer"
