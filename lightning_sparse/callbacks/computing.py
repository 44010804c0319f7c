"""Layers that hold and compute live weights only, while a fit lasts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info, rank_zero_warn
from lightning_sparse.callbacks.channels.surgery import unwrapped
from lightning_sparse.compute.compaction import Compaction
from lightning_sparse.compute.support import mixing, unsupported
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.select import targets

if TYPE_CHECKING:
    from lightning_sparse.callbacks.mask_updater import MaskUpdater

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
_OTHERS = {  # callbacks that need dense layers, and why
    "BNChannelPruner": "it cuts channels out of dense layers",
    "QuantizeSparse": "it quantizes dense layers",
    "BaseFinetuning": "it saves the names of what optimizers step",
    "WeightAveraging": "it averages with a dense copy",
    "StochasticWeightAveraging": "it averages with a dense copy",
    "ModelPruning": "it reparametrizes dense layers",
}


class Computing:
    """Which layers of a fit are without zeros; see :class:`lightning_sparse.compute.compaction.Compaction`."""

    def __init__(self) -> None:
        self._compaction: Compaction | None = None
        self._known: set[str] = set()  # parameters that were looked at
        self._live: dict[str, int] = {}

    def start(self, updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
        """Engines are there: they let go of the optimizers, and zeros are taken out where that is possible.

        Raises:
            MisconfigurationException: if it is nowhere, and the user insists.
        """
        if updater.compute == "dense":
            return
        self.stop(updater, trainer)
        self._known = set()
        if reasons := _hindrances(trainer, pl_module, updater):
            text = f"{updater.name}: compute={updater.compute!r} cannot be: {'; '.join(reasons)}"
            if updater.compute == "sparse":
                raise MisconfigurationException(f'{text}. Give compute="dense" or "auto".')
            rank_zero_info(f"{text}. Layers are computed dense.")
            return
        self._compaction = Compaction(pl_module, averaged=trainer.world_size > 1)
        self._enter(updater, trainer, pl_module)

    def look(self, updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
        """A batch comes: layers may have joined."""
        names = [name for engine in updater.engines for name in engine.params]
        if self._compaction is not None and not self._known.issuperset(names):
            for engine in updater.engines:
                engine.detach()
            self._enter(updater, trainer, pl_module)
            for engine in updater.engines:
                for optimizer in trainer.optimizers:
                    engine.attach(optimizer)

    def moved(self, trainer: Any) -> None:
        """Masks have moved: DDP loses parameters that have got another size, and is made anew."""
        if self._compaction is not None and self._live != (live := self._counts()):
            self._live = live
            with unwrapped(trainer):
                pass

    def stop(self, updater: "MaskUpdater", trainer: Any) -> None:
        """The fit is over: engines let go of the optimizers, and the model is plain."""
        for engine in updater.engines:
            engine.detach()
        if self._compaction is not None:
            self._compaction.leave(map(unwrap, trainer.optimizers))
            self._compaction = None

    def _enter(self, updater: "MaskUpdater", trainer: Any, pl_module: Any) -> None:
        assert self._compaction is not None
        params = {name: p for engine in updater.engines for name, p in engine.params.items()}
        new = {name: p for name, p in params.items() if name not in self._known and p.target < p.size}
        self._known.update(params)
        reasons = _unsupported(pl_module, new)
        if reasons:
            listed = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
            rank_zero_warn(f"{updater.name}: compute={updater.compute!r} leaves dense {listed}")
        chosen = [p for name, p in new.items() if name not in reasons]
        if new and not chosen and not self._compaction.layers and updater.compute == "sparse":
            raise MisconfigurationException(
                f'{updater.name}: compute="sparse", and no layer has a form without zeros; give compute="dense"'
            )
        if chosen:
            with unwrapped(trainer):
                self._compaction.enter(chosen, map(unwrap, trainer.optimizers))
            live, size = sum(p.live for p in chosen), sum(p.size for p in chosen)
            rank_zero_info(
                f"{updater.name}: {len(chosen)} layers hold and compute live weights only, {live:,} of {size:,}"
            )
        self._live = self._counts()

    def _counts(self) -> dict[str, int]:
        return {name: layer.live for name, layer in self._compaction.layers.items()} if self._compaction else {}


def _unsupported(pl_module: Any, params: Mapping[str, SparseParam]) -> dict[str, str]:
    owners: dict[str, Sequence[Any]] = {target.name: found for target, found in targets(pl_module)}
    reasons = {name: unsupported(p, owners[name]) for name, p in params.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _hindrances(trainer: Any, pl_module: Any, updater: "MaskUpdater") -> list[str]:
    """What of a run no layer without zeros can work with."""
    found = []
    algorithm = updater.engines[0].algorithm
    if reason := algorithm.why_dense():
        found.append(f"{type(algorithm).__name__} {reason}")
    if not any(kind.__name__ in _STRATEGIES for kind in type(trainer.strategy).__mro__):
        found.append(f"{type(trainer.strategy).__name__} is not supported, SingleDeviceStrategy and DDPStrategy are")
    if trainer.strategy.root_device.type != "cpu":
        found.append(f"not supported on the device {trainer.strategy.root_device.type}")
    if trainer.precision not in _PRECISIONS:
        found.append(f"precision={trainer.precision!r} is not supported, {', '.join(_PRECISIONS)} are")
    if names := mixing(map(unwrap, trainer.optimizers)):
        found.append(f"{', '.join(names)} may not step each weight by itself")
    compiled = getattr(pl_module, "_compiler_ctx", None) is not None
    if compiled or any(hasattr(module, "_orig_mod") for module in pl_module.modules()):
        found.append("the model is compiled")
    for callback in trainer.callbacks:
        kinds = [kind.__name__ for kind in type(callback).__mro__]
        found += [f"{name} is there: {why}" for name, why in _OTHERS.items() if name in kinds]
        if "Regularizer" in kinds and getattr(callback, "on", "") == "weights":
            found.append("Regularizer(on='weights') is there: it penalizes dense weights")
    return found
