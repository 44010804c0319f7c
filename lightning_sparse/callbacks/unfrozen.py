"""Layers that are frozen when a fit starts: they become sparse when they become trainable."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info
from lightning_sparse.callbacks.engine import build_later, chosen
from lightning_sparse.callbacks.notices import warn
from lightning_sparse.callbacks.run import follow_averages, horizon
from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.checkpoint import saved_masks
from lightning_sparse.core.patterns import seen
from lightning_sparse.core.select import Target, select, targets
from lightning_sparse.core.sparsifier import Sparsifier

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater


class Group(NamedTuple):
    """Layers that were unfrozen together.

    Attributes:
        engine: keeps them sparse.
        begun: optimizer steps that the run had taken by then.
    """

    engine: Sparsifier
    begun: int


class Unfrozen:
    """All groups of layers that joined a run after its start, in their order."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._frozen: list[Target] = []
        self._waiting: list[Mapping[str, Any]] = []  # states of layers that a checkpoint has, and that are frozen again

    @property
    def engines(self) -> list[Sparsifier]:
        """The engine of each group."""
        return [group.engine for group in self.groups]

    def start(self, pl_module: Any) -> None:
        """A fit starts: note what is frozen."""
        self._frozen = [target for target, _ in targets(pl_module) if not target.weight.requires_grad]

    def join(self, updater: "MaskUpdater", trainer: Any, pl_module: Any, steps: int) -> None:
        """A batch comes: take in what has become trainable since the last one, if the updater's globs want it."""
        if not any(target.weight.requires_grad for target in self._frozen):
            return
        was_frozen = {target.name for target in self._frozen}
        known = {name for engine in updater.engines for name in engine.params}
        pattern = next(iter(updater.engines[0].params.values())).pattern
        self.start(pl_module)
        chosen = [t for t in select(pl_module, updater.include, updater.exclude) if t.name in was_frozen - known]
        names = [target.name for target in chosen if not pattern.misfit(seen(target))]
        back = [state for state in self._waiting if set(state["params"]) <= set(names)]
        self._waiting = [state for state in self._waiting if not set(state["params"]) <= set(names)]
        for state in back:
            self._take_in(updater, trainer, pl_module, list(state["params"]), state["begun"], state)
            names = [name for name in names if name not in state["params"]]
        if names:
            self._take_in(updater, trainer, pl_module, names, steps)

    def _take_in(
        self,
        updater: "MaskUpdater",
        trainer: Any,
        pl_module: Any,
        names: Sequence[str],
        begun: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        _refuse_going_back(updater.name, updater.engines[0].algorithm, names)
        engine = build_later(updater, trainer, pl_module, names, begun, state)
        self.groups.append(Group(engine, begun))
        warn(updater.name, engine, None)
        follow_averages(trainer, engine)
        live, size = sum(p.live for p in engine.params.values()), sum(p.size for p in engine.params.values())
        rank_zero_info(f"{updater.name}: {', '.join(names)} can be trained now: {live:,} of {size:,} weights live")

    def restore(
        self, updater: "MaskUpdater", trainer: Any, pl_module: Any, states: Sequence[Mapping[str, Any]]
    ) -> None:
        """Go on from a checkpoint, or from the callback that this one is a copy of; without states, begin anew."""
        self.groups, self._waiting = [], []
        trained = {target.name for target, _ in targets(pl_module) if target.weight.requires_grad}
        for state in states:
            if not set(state["params"]) <= trained:
                self._waiting += [state] if trainer.ckpt_path is not None else []  # else it joins anew
                continue
            engine = build_later(updater, trainer, pl_module, list(state["params"]), state["begun"], state)
            if trainer.global_step == 0:
                engine.restart(engine.algorithm)
            self.groups.append(Group(engine, state["begun"]))

    def restart(self, updater: "MaskUpdater", trainer: Any) -> None:
        """Another fit with the masks of the last one."""
        total, epoch = horizon(trainer)
        anew = trainer.global_step == 0
        self.groups = [Group(engine, 0 if anew else begun) for engine, begun in self.groups]
        for engine, begun in self.groups:
            left = None if total is None else max(total - begun, 1)
            engine.restart(chosen(updater).planned(left, epoch), 0 if anew else engine.steps)

    def adopt(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take the masks of a checkpoint whose weights the model holds now; what was dense there is dense again."""
        del self.groups[len(states) :]
        for group, state in zip(self.groups, states, strict=False):
            group.engine.adopt(state)

    def state_dict(self) -> dict[str, Any]:
        """The state of every group; empty where there is none."""
        states: list[Mapping[str, Any]] = [
            {**engine.state_dict(), "begun": begun} for engine, begun in self.groups
        ] + self._waiting
        return {"later": states} if states else {}


def _refuse_going_back(name: str, algorithm: Algorithm, names: Sequence[str]) -> None:
    """There is no early state that layers which train from now on could go back to together with the others.

    Raises:
        MisconfigurationException: if the algorithm rewinds.
    """
    if algorithm.rewind_step is not None:
        raise MisconfigurationException(
            f"{name}: {', '.join(names)} can be trained now, and could not at step {algorithm.rewind_step}, which "
            f"{type(algorithm).__name__} goes back to; unfreeze before training, give rewind=None, or "
            f"exclude={list(names)} (and give these to the optimizer from the start)"
        )


def all_saved_masks(state: Mapping[str, Any]) -> Masks:
    """The masks in a MaskUpdater's saved state, those of layers that were unfrozen later too."""
    return {name: mask for part in (state, *state.get("later", ())) for name, mask in saved_masks(part).items()}
