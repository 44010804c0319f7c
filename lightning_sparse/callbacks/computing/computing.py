"""Layers that hold and compute live weights only, while a fit lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_sparse.callbacks.base import rank_zero_info, rank_zero_warn
from lightning_sparse.callbacks.channels.surgery import unwrapped
from lightning_sparse.callbacks.computing.choice import Choice
from lightning_sparse.callbacks.computing.hindrances import hindrances, refuse_compute, without_form
from lightning_sparse.callbacks.run import averages
from lightning_sparse.compute.compaction import Compaction
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.param import SparseParam

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater


class Computing:
    """Which layers of a fit are without zeros; see :class:`lightning_sparse.compute.compaction.Compaction`."""

    def __init__(self) -> None:
        self._compaction: Compaction | None = None
        self._choice: Choice | None = None  # under "auto"
        self._known: set[str] = set()  # parameters that were looked at
        self._live: dict[str, int] = {}

    def start(self, updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
        """Engines are there: they let go of the optimizers, and zeros are taken out where that is possible.

        Raises:
            MisconfigurationException: if it is nowhere, and the user insists.
        """
        if updater.compute == "dense":
            return
        self.let_go(updater, trainer)
        self._known, self._choice = set(), None
        algorithm = updater.engines[0].algorithm
        refuse_compute(updater, trainer, pl_module, algorithm)
        if reasons := hindrances(trainer, pl_module, algorithm):
            tell = rank_zero_info if algorithm.why_dense() else rank_zero_warn
            tell(f"{updater.name}: all layers are computed dense: {'; '.join(reasons)}")
            return
        self._compaction = Compaction(pl_module, trainer.world_size > 1, averages(trainer))
        if updater.compute == "auto":
            self._choice = Choice()
        self._join(updater, trainer, pl_module)

    def look(self, updater: "MaskUpdater", trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """A batch comes: layers may have joined, or be worth another look."""
        if self._compaction is None or batch_idx % trainer.accumulate_grad_batches:
            return
        params = _params(updater)
        if not self._known.issuperset(params):
            with _released(updater, trainer):
                self._join(updater, trainer, pl_module)
        if self._choice is not None and (chosen := self._choice.look(updater.name, trainer, params)):
            here = self._compaction.layers
            enter = [params[name] for name, sparse in chosen.items() if sparse and name not in here]
            leave = [name for name, sparse in chosen.items() if not sparse and name in here]
            if enter or leave:
                with _released(updater, trainer):
                    self._exchange(trainer, enter, leave)

    def moved(self, trainer: Any) -> None:
        """Masks have moved: DDP loses parameters that have got another size, and is made anew."""
        if self._compaction is not None and self._live != (live := self._counts()):
            self._live = live
            with unwrapped(trainer):
                pass

    def stop(self, updater: "MaskUpdater", trainer: Any) -> None:
        """The fit is over: the model is plain."""
        if self._choice is not None:
            self._choice.close()
        if self._compaction is not None:
            for engine in updater.engines:
                engine.detach()
            self._compaction.leave(map(unwrap, trainer.optimizers))
            self._compaction = None

    def let_go(self, updater: "MaskUpdater", trainer: Any) -> None:
        """The model is plain, and engines follow no optimizer."""
        self.stop(updater, trainer)
        for engine in updater.engines:
            engine.detach()

    def _join(self, updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
        """Parameters that were not looked at yet."""
        params = _params(updater)
        new = {name: p for name, p in params.items() if name not in self._known and p.target < p.size}
        self._known.update(params)
        if reasons := without_form(pl_module, [p.place for p in new.values()]):
            listed = ", ".join(f"{name} (it is {reason})" for name, reason in reasons.items())
            rank_zero_warn(f"{updater.name}: compute={updater.compute!r} leaves dense {listed}")
        able = [p for name, p in new.items() if name not in reasons]
        if self._choice is not None:
            self._choice.watch(able)
        elif able:
            self._exchange(trainer, able, [])
            live, size = sum(p.live for p in able), sum(p.size for p in able)
            rank_zero_info(
                f"{updater.name}: {len(able)} layers hold and compute live weights only: {live:,} of {size:,}"
            )

    def _exchange(self, trainer: Any, enter: Sequence[SparseParam], leave: Sequence[str]) -> None:
        assert self._compaction is not None
        optimizers = [unwrap(optimizer) for optimizer in trainer.optimizers]
        with unwrapped(trainer):
            self._compaction.leave(optimizers, leave)
            self._compaction.enter(enter, optimizers)
        self._live = self._counts()

    def _counts(self) -> dict[str, int]:
        return {name: layer.live for name, layer in self._compaction.layers.items()} if self._compaction else {}


def _params(updater: "MaskUpdater") -> dict[str, SparseParam]:
    return {name: p for engine in updater.engines for name, p in engine.params.items()}


@contextmanager
def _released(updater: "MaskUpdater", trainer: Any) -> Iterator[None]:
    """Inside, engines follow no optimizer."""
    for engine in updater.engines:
        engine.detach()
    yield
    for engine in updater.engines:
        for optimizer in trainer.optimizers:
            engine.attach(optimizer)
