"""Which channels stay: all ranks look, the first decides, all hear of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.callbacks.channels.arguments import choice
from lightning_sparse.callbacks.channels.trace import forward_run, quiet, quiet_step, samples
from lightning_sparse.callbacks.data import TrainerLoss, example_inputs
from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.collect import Collector, gather
from lightning_sparse.channels.criteria import named
from lightning_sparse.channels.decide import decide
from lightning_sparse.channels.parts import excluded, parameter_shapes
from lightning_sparse.channels.prices import Prices
from lightning_sparse.channels.remaining import remaining

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner

Scores = dict[str, Tensor]


def scored(pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph) -> tuple[Scores, dict[str, str]]:
    """Scores of the axes that may lose channels, and why the others have none. All ranks must ask: they average."""
    criterion, whole = named(pruner.criterion), excluded(pl_module, graph, pruner.exclude)
    collector = Collector(pl_module, graph, criterion)
    if criterion.asks != "nothing":
        if not pl_module.automatic_optimization and criterion.asks == "gradients":
            raise MisconfigurationException(
                f"{pruner.name}: {criterion!r} takes gradients of the loss that training_step returns, and under "
                "manual optimization there is none; take a criterion that needs no gradients"
            )
        with quiet(trainer, pl_module):
            inputs = example_inputs(trainer, pl_module, pruner.seed) if criterion.asks == "inputs" else None
            batches = samples(trainer, pruner.seed, pruner.batches)
            gather(collector, forward_run(pl_module, inputs), batches, _loss(trainer, pl_module))
    scores = {name: score for name, score in collector.scores().items() if name not in whole}
    return scores, {**collector.unseen, **whole}


def decided(
    pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph, reached: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The channels of each axis that stay after the moments reached, by their numbers in ``graph``; and why some do.

    Raises:
        ValueError: on every rank, if the first cannot meet the target.
    """
    scores, unseen = scored(pruner, trainer, pl_module, graph)
    left = {name: pruner.held.get(name, torch.arange(len(score))) for name, score in scores.items()}
    rest = remaining(graph, pruner.held) if pruner.held else graph
    answer: Any = None
    if trainer.is_global_zero:
        try:
            here = {name: score[left[name]] for name, score in scores.items()}
            kept = _choose(pruner, trainer, pl_module, rest, here, reached)
            answer = {name: left[name][index].tolist() for name, index in kept.items()}, pruner.first, pruner.counts
        except ValueError as error:
            answer = str(error)
    answer = trainer.strategy.broadcast(answer)
    if isinstance(answer, str):
        raise ValueError(f"{pruner.name}: {answer}")
    pruner.first, pruner.counts = answer[1:]
    return {name: torch.tensor(index) for name, index in answer[0].items()}, unseen


def _choose(
    pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph, scores: Scores, reached: int
) -> Mapping[str, Tensor]:
    """What stays of what is left, so that the wanted share of what was there at first stays."""
    now = _note_first(pruner, pl_module, graph, scores)
    with quiet(trainer, pl_module):
        timed = pruner.target == "latency"
        batch = samples(trainer, pruner.seed, 1)[0] if timed else None
        how = choice(pruner, _share(pruner, now, reached))
        return decide(pl_module, graph, scores, lambda: quiet_step(trainer, pl_module, batch), how).kept


def _share(pruner: "BNChannelPruner", now: Mapping[str, float], reached: int) -> float:
    """What stays of what is there now, that can go."""
    assert pruner.moments is not None
    share = pruner.moments.share(reached, pruner.keep)
    if pruner.target == "latency":
        return min(1.0, share / pruner.moments.share(pruner.done, pruner.keep))
    stuck = sum(pruner.counts.values()) - now["channels"] if pruner.target == "channels" else 0  # on axes of one
    return min(1.0, max((share * pruner.first[pruner.target] - stuck) / now[pruner.target], 1e-9))


def measures(graph: Graph, scores: Scores, pl_module: Any, samples: int) -> dict[str, float]:
    """How much there is of what a target can be a share of: channels that may go, parameters, FLOPs a sample."""
    prices = Prices(graph, {name: graph.shapes[name] for name in parameter_shapes(pl_module)})
    total = sum(len(score) for score in scores.values())
    return {"channels": total, "params": prices.params({}), "flops": prices.flops({}) / samples}


def refuse_impossible(
    pruner: "BNChannelPruner", trainer: Any, pl_module: Any, graph: Graph, probed: bool = False
) -> None:
    """Stop before the first optimizer step where nothing can be cut, or not enough; else note what there is.

    Args:
        pruner: that is to cut.
        trainer: in the fit.
        pl_module: its model.
        graph: of its channels.
        probed: whether it is final.

    Raises:
        MisconfigurationException: with the reasons and the way out.
    """
    if not graph.atoms:
        reasons = list(dict.fromkeys(graph.frozen.values()))
        why = "; ".join(f"{next(n for n, r in graph.frozen.items() if r == text)}: {text}" for text in reasons[:6])
        raise MisconfigurationException(f"{pruner.name}: no channel of this model can be cut. {why or 'It has none.'}")
    criterion = named(pruner.criterion)
    if criterion.asks == "nothing":
        scores, unseen = scored(pruner, trainer, pl_module, graph)
    else:
        whole = excluded(pl_module, graph, pruner.exclude)
        scores, unseen = {a.name: torch.ones(a.channels) for a in graph.atoms if a.name not in whole}, whole
    if not scores:
        axes = "; ".join(f"{name}: {text}" for name, text in list(unseen.items())[:6])
        raise MisconfigurationException(f"{pruner.name}: {criterion!r} can score no channel of this model. {axes}")
    held, before = pruner.held, (pruner.first, pruner.counts)
    left = {name: score[held[name]] if name in held else score for name, score in scores.items()}
    rest = remaining(graph, held) if held else graph
    _note_first(pruner, pl_module, rest, left)
    if pruner.target != "latency" and pruner.threshold is None:
        try:
            _choose(pruner, trainer, pl_module, rest, left, reached=10**9)
        except ValueError as error:
            raise MisconfigurationException(f"{pruner.name}: {error}") from error
    if not probed:
        pruner.first, pruner.counts = before


def _note_first(pruner: "BNChannelPruner", pl_module: Any, graph: Graph, scores: Scores) -> dict[str, float]:
    """What there is now; at first also what shares are of."""
    now = measures(graph, scores, pl_module, pruner.watch.samples)
    pruner.first = pruner.first or now
    pruner.counts = {**pruner.counts, **{name: len(score) for name, score in scores.items()}}
    return now


def _loss(trainer: Any, pl_module: Any) -> Any:
    """What runs the model on a batch; where its optimization is automatic, the loss is looked at."""
    loss = TrainerLoss(trainer)
    return loss if pl_module.automatic_optimization else lambda model, batch: quiet_step(trainer, model, batch)
