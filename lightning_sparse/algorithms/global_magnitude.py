"""Train, prune, train on: at once or in rounds, from where training stands or from an early state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning_sparse.algorithms.base import ends_early, in_steps, whole_steps, wrong_moment
from lightning_sparse.core.algorithm import Algorithm, Masks, everything, keep_budget, thin
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.values import mistyped

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class GlobalMagnitude(Algorithm):
    """Prune the smallest weights of all layers together, at one moment or in rounds.

    With one round this is the classical three stages: train, prune at ``stop``, fine-tune. With more, each round leaves
    the same share of what lived (Han et al. 2015, https://arxiv.org/abs/1506.02626). With ``rewind``, weights, biases,
    running statistics and optimizer state go back after every round to what they were at an early step, and the sparse
    network trains again: lottery tickets (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, rewound to the first
    weights; Frankle et al. 2020, https://arxiv.org/abs/1912.05671, to an early step). What is to go back to is part of
    checkpoints.

    Rounds are equally long; rewinding takes as many steps again for each, so plan the run ``rounds + 1`` times as long.
    A pruned weight does not come back. ``allocation="erk"`` and others prune by layer.

    Args:
        rounds: how often to prune.
        stop: the step of the last pruning: optimizer steps (int) or a share of the run (float); None leaves every
            round, and the training after the last, the same length: ``rounds / (rounds + 1)`` of the run.
        rewind: None to train on, "init" to go back to the first weights, or the step to go back to: optimizer steps
            (int) or a share of the run (float), before the first pruning.
        rewind_schedule: whether the learning rate goes back too (under Lightning, whose schedulers are known); else it
            goes on.

    Example:
        >>> tickets = GlobalMagnitude(rounds=3, rewind="init").planned(total_steps=400, epoch_steps=None)
        >>> [step for step in range(400) if tickets.due(step)]
        [100, 200, 300]
    """

    allocation: ClassVar[AllocationName] = "global"
    only_falls: ClassVar[bool] = True

    rounds: int = 1
    stop: int | float | None = None
    rewind: Literal["init"] | int | float | None = None
    rewind_schedule: bool = False

    def __post_init__(self) -> None:
        """Check what was given, all at once."""
        whole_steps(self)
        found = []
        if type(self.rounds) is not int or self.rounds < 1:
            found.append(f"rounds must be a positive number, got {self.rounds!r}")
        if self.stop is not None:
            found += wrong_moment("stop", self.stop)
        if self.rewind is not None and self.rewind != "init":
            found += [text + "; or 'init', or None" for text in wrong_moment("rewind", self.rewind)]
        if self.rewind_schedule is True and self.rewind is None:
            found.append("rewind_schedule=True has nothing to rewind: give rewind='init' or a step")
        raise_problems(found + mistyped(self, found), "GlobalMagnitude")

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """See :meth:`Algorithm.planned`."""
        stop = self.rounds / (self.rounds + 1) if self.stop is None else self.stop
        last = in_steps(self, "stop", stop, total_steps)
        if last < self.rounds:
            raise ValueError(f"GlobalMagnitude: rounds={self.rounds} need as many steps, the last is at step {last}")
        back = self.rewind
        if isinstance(back, int | float):
            back = in_steps(self, "rewind", back, total_steps)
            if back >= last // self.rounds:
                raise ValueError(
                    f"GlobalMagnitude: rewind={back} must come before the first pruning at step {last // self.rounds}"
                )
        return replace(self, stop=last, rewind=back)

    def too_short(self, total_steps: int | None) -> str:
        """See :meth:`Algorithm.too_short`."""
        if total_steps == self._last:
            return f"the last pruning is at the last step, {total_steps}: nothing trains after it; give a smaller stop="
        return ends_early("stop", self._last, total_steps)

    def due(self, step: int) -> bool:
        """At the end of every round."""
        return self._round(step) > 0

    def settled(self, step: int) -> bool:
        """After the last pruning."""
        return step >= self._last

    def rewinds(self, step: int) -> bool:
        """After every pruning, if at all."""
        return self.rewind is not None and self.due(step)

    @property
    def rewind_step(self) -> int | None:
        """See :attr:`Algorithm.rewind_step`."""
        return int(self.rewind) if isinstance(self.rewind, int | float) else 0 if self.rewind == "init" else None

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """Everything lives."""
        return everything(params)

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """Keep the largest live weights: the same share of them after every round."""
        counts = thin(params, self._round(step) / self.rounds)
        if sum(counts) >= sum(p.live for p in params):
            return {}  # a later fit with masks that were pruned before
        return keep_budget(params, {p.name: p.weight.abs() for p in params}, counts, live_only=True)

    def training_flops(self, sparse: float, dense: float) -> float:
        """Averaged over equal rounds and the training after them, where ``stop`` is left to that."""
        if self.stop is not None:
            return 3 * sparse
        share = sparse / dense if dense else 1.0
        left = [float(share ** (i / self.rounds)) for i in range(self.rounds + 1)]
        return 3 * dense * sum(left) / len(left)

    @property
    def _last(self) -> int:
        assert isinstance(self.stop, int), "planned"
        return self.stop

    def _round(self, step: int) -> int:
        """Which round ends with this step, from 1; 0 for none."""
        return next((i for i in range(1, self.rounds + 1) if step == i * self._last // self.rounds), 0)
