"""What pulls channels to zero while they are still there."""

from collections.abc import Mapping, Sequence
from glob import escape
from math import isfinite
from typing import Any, Literal

from torch import Tensor, nn

from lightning_sparse.callbacks.base import MisconfigurationException, rank_zero_info, rank_zero_warn
from lightning_sparse.callbacks.regularizer import scale_left, scale_of
from lightning_sparse.callbacks.run import horizon
from lightning_sparse.channels.atoms import Graph
from lightning_sparse.core.schedules import Schedule
from lightning_sparse.core.select import inputs_first, matches, select
from lightning_sparse.penalties import L1, GroupLasso, WeightRegularizer
from lightning_sparse.penalties.choose import chosen_gammas
from lightning_sparse.penalties.undecayed import Undecayed

PenaltyKind = Literal["subgradient", "proximal", "group_lasso"]
_LASSO = {"outputs": GroupLasso("neurons", by_size=False), "inputs": GroupLasso("inputs", by_size=False)}


class ChannelPenalty:
    """The penalty of a BNChannelPruner, followed through a run.

    Args:
        kind: "subgradient" or "proximal": L1 on the weights of BatchNorm; "group_lasso": on the channels of weights.
        l1: its strength: a number, a Schedule, or "auto".
        ratio: the share of the whole loss that "auto" gives to the penalty, at the first step.
        exclude: globs of what is not pruned, and so not pulled either.
        name: for what is said.

    Attributes:
        engines: one, or two for a group lasso.
    """

    def __init__(
        self,
        kind: PenaltyKind | None,
        l1: "float | Schedule | str",
        ratio: float,
        exclude: Sequence[str],
        name: str,
    ) -> None:
        self.kind, self.l1, self.ratio, self.exclude, self.name = kind, l1, ratio, list(exclude), name
        self.engines: list[WeightRegularizer] = []
        self._strength: float | None = None  # that "auto" came to
        self._groups: dict[str, list[str]] = {}  # names of weights, by the side whose channels are pulled
        self._steps: list[list[int]] = []
        self._undecayed: Undecayed | None = None

    @property
    def waits(self) -> bool:
        """Whether it begins with the first batch, from which it has to learn something."""
        if self.kind is None or self.engines:
            return False
        return (self.l1 == "auto" and self._strength is None) or (self.kind == "group_lasso" and not self._groups)

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Follow the optimizers, where all is known.

        Raises:
            ValueError: if there is nothing to pull.
        """
        if self.kind in ("subgradient", "proximal"):
            self._groups = {"gammas": [t.name for t in chosen_gammas(pl_module, None, ()) if not self._left(t.name)]}
        if self.kind is not None and not self.waits:
            self._build(trainer, pl_module, 1.0 if self._strength is None else self._strength)

    def learn(self, trainer: Any, pl_module: Any, graph: Graph | None, loss: Tensor | None) -> None:
        """The first batch was seen: begin with what it tells.

        Args:
            trainer: in the fit.
            pl_module: its model.
            graph: of the channels, for a group lasso.
            loss: as Lightning is about to differentiate it, for ``l1="auto"``.
        """
        if not self.waits:
            return
        if self.kind == "group_lasso" and not self._groups:
            if graph is None:
                return
            self._groups = lasso_groups(pl_module, graph, self.exclude)
        if self.l1 == "auto" and self._strength is None:
            if loss is None:
                return
            scale = scale_of(trainer, loss.device)
            plain = float(loss.detach()) * trainer.accumulate_grad_batches / (1.0 if scale is None else float(scale))
            self._build(trainer, pl_module, 1.0)
            paid = sum(float(engine.value()) for engine in self.engines)
            self.stop()
            self._strength = trainer.strategy.broadcast(self._automatic(plain, paid))
            rank_zero_info(f"{self.name}: the penalty's strength is {self._strength:.3g}, {self.ratio:.0%} of the loss")
        self._build(trainer, pl_module, 1.0 if self._strength is None else self._strength)

    def spare_gammas(self, trainer: Any, pl_module: Any) -> None:
        """No weight decay on the weights of BatchNorm."""
        self._undecayed = Undecayed([target.weight for target in chosen_gammas(pl_module, None, ())])
        for optimizer in trainer.optimizers:
            self._undecayed.attach(optimizer)

    def add(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are accumulated and averaged, not yet clipped."""
        for engine in self.engines:
            engine.add(optimizer, scale_left(trainer, pl_module.device, optimizer))

    def discard(self) -> None:
        """Forget what was added for a step that a gradient scaler skipped."""
        for engine in self.engines:
            engine.discard()

    def value(self) -> float:
        """What the penalty would add to the loss."""
        return sum(float(engine.value()) for engine in self.engines)

    def stop(self) -> None:
        """Pull no more; counts stay."""
        self._steps = [engine.steps for engine in self.engines] or self._steps
        for engine in self.engines:
            engine.detach()
        self.engines = []

    def close(self) -> None:
        """Let go of the optimizers."""
        self.stop()
        if self._undecayed:
            self._undecayed.detach()
            self._undecayed = None

    def forget(self) -> None:
        """Another run begins."""
        self._strength, self._groups, self._steps = None, {}, []

    def state_dict(self) -> dict[str, Any]:
        """Numbers and names."""
        steps = [list(engine.steps) for engine in self.engines] or self._steps
        return {"strength": self._strength, "groups": {k: list(v) for k, v in self._groups.items()}, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._strength, self._steps = state.get("strength"), [list(counts) for counts in state.get("steps", [])]
        self._groups = {k: list(v) for k, v in state.get("groups", {}).items()}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy without the model."""
        return {**vars(self), "engines": [], "_undecayed": None, "_steps": self.state_dict()["steps"]}

    def _left(self, name: str) -> bool:
        return bool(self.exclude) and matches(name, self.exclude)

    def _build(self, trainer: Any, pl_module: Any, strength: float) -> None:
        given = strength if self.l1 == "auto" else self.l1
        assert not isinstance(given, str), "a number or a Schedule"
        total, steps = horizon(trainer)[0], [*self._steps, [], []]
        for i, (side, names) in enumerate((side, names) for side, names in self._groups.items() if names):
            self.engines.append(
                WeightRegularizer(
                    pl_module,
                    _LASSO.get(side, L1()),
                    given,
                    on="gammas" if side == "gammas" else "weights",
                    proximal=self.kind == "proximal",
                    momentum=True,
                    include=[escape(name) for name in names],
                    total_steps=total,
                    steps=steps[i],
                )
            )
        for engine in self.engines:
            for optimizer in trainer.optimizers:
                engine.attach(optimizer)
            if lost := engine.unattached():
                rank_zero_warn(f"{self.name}: no optimizer steps {', '.join(lost)}: they are not pulled to zero")

    def _automatic(self, loss: float, paid: float) -> float:
        """PruneTrain's strength: the penalty is ``ratio`` of the whole loss (Lym et al. 2019, section 4.1)."""
        if not (isfinite(loss) and loss > 0 and isfinite(paid) and paid > 0):
            raise MisconfigurationException(
                f"{self.name}: l1='auto' divides the first loss by the penalty, and these are {loss:g} and {paid:g}; "
                "give l1 as a number"
            )
        return self.ratio * loss / (paid * (1 - self.ratio))


def lasso_groups(pl_module: nn.Module, graph: Graph, exclude: Sequence[str] = ()) -> dict[str, list[str]]:
    """Weights whose output channels, and whose input channels, form groups: those that can be cut.

    So neither the first layer's inputs nor the last one's outputs count, nor depthwise convolutions: PruneTrain's rule
    (Lym et al. 2019, https://arxiv.org/abs/1901.09290).
    """
    dims = {(place.name, place.dim) for atom in graph.atoms for place in atom.places}
    sides: dict[str, list[str]] = {"outputs": [], "inputs": []}
    for target in select(pl_module):
        if exclude and matches(target.name, exclude):
            continue
        first, second = ("inputs", "outputs") if inputs_first(target.module) else ("outputs", "inputs")
        grouped = getattr(target.module, "groups", 1) > 1
        if (target.name, 0) in dims and not (grouped and first == "inputs"):
            sides[first].append(target.name)
        if (target.name, 1) in dims and not grouped:
            sides[second].append(target.name)
    return sides
