"""What the engine asks of an algorithm."""

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lightning_sparse.core.allocation import AllocationName, apportion, deal
from lightning_sparse.core.masks import keep_top
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.patterns import Pattern

if TYPE_CHECKING:
    from typing_extensions import Self

    from lightning_sparse.core.probe import Probe

Masks = dict[str, Tensor]


class Algorithm(ABC):
    """Hyper-parameters and pure functions: which weights should live, given what is shown.

    Subclasses are frozen dataclasses. They never write weights, gradients or optimizer state; the engine does.
    """

    allocation: ClassVar[AllocationName] = "erk"  # where the user names none
    own_pattern: ClassVar[Pattern | None] = None  # where the user names neither pattern nor density
    asks: ClassVar[Literal["nothing", "loss", "inputs"]] = "nothing"  # what the first masks are made from
    moves_budget: ClassVar[bool] = False  # whether updates move weights from layer to layer
    only_falls: ClassVar[bool] = False  # whether the number of live weights never rises
    replace_step: bool = False

    def planned(self, total_steps: int | None, epoch_steps: int | None) -> "Self":
        """A copy with every share of the run resolved to optimizer steps.

        Args:
            total_steps: optimizer steps of the whole run, or None when unknown.
            epoch_steps: optimizer steps of an epoch, or None when unknown.

        Raises:
            ValueError: if a length that is unknown is needed.
        """
        return self

    def settled(self, step: int) -> bool:
        """Whether the density after optimizer step ``step`` is the final one, and stays so."""
        return True

    def rewinds(self, step: int) -> bool:
        """Whether weights and optimizer state go back to those of step :attr:`rewind_step` after ``step``."""
        return False

    @property
    def rewind_step(self) -> int | None:
        """The optimizer step whose weights are kept to go back to (0: the first ones); None for none."""
        return None

    def why_dense(self) -> str:
        """Why its layers need the zeros too (``compute="sparse"`` is refused); empty where live weights suffice."""
        if self.rewind_step is not None:
            return "goes back to the dense weights of an early step"
        if type(self).observe is not Algorithm.observe:
            return "looks at the dense gradient of every step"
        return ""

    def too_short(self, total_steps: int | None) -> str:
        """What will not happen in a run of that length, and the way out; empty when all is well."""
        return ""

    def due(self, step: int) -> bool:
        """Whether masks move after optimizer step ``step`` (the first is 1)."""
        return False

    def needs_gradient(self, step: int) -> bool:
        """Whether the dense gradient of optimizer step ``step`` is needed; asked before the forward."""
        return False

    def init(self, params: Sequence[SparseParam]) -> Masks:
        """The first masks: random or the largest weights, as ``p.init`` says, at the planned counts."""
        return keep_budget(params, {p.name: first_score(p) for p in params}, [p.target for p in params])

    def init_from(self, params: Sequence[SparseParam], probe: "Probe") -> Masks:
        """The first masks of an algorithm that ``asks`` for data; see :class:`lightning_sparse.core.probe.Probe`."""
        return self.init(params)

    def update(self, params: Sequence[SparseParam], step: int) -> Masks:
        """The masks after optimizer step ``step``; pure. Sees all parameters of an optimizer: budgets may move."""
        return {}

    def observe(self, params: Sequence[SparseParam], step: int) -> None:
        """Look at the dense gradients of step ``step``, where they were asked for; may write ``p.state``."""

    def resized(self, p: SparseParam, share: float) -> None:
        """A weight has lost channels, and tensors of its shape in ``p.state`` with it: mend what else is in there.

        Args:
            p: with its new mask.
            share: new size by old size.
        """

    def state_shapes(self, p: SparseParam) -> dict[str, tuple[int, ...]]:
        """The shape of everything in ``p.state``, once there is anything; what a checkpoint holds must fit it.

        Empty where nothing is kept, or nothing is to be checked. More than this may be kept.
        """
        return {}

    def training_flops(self, sparse: float, dense: float) -> float:
        """FLOPs to train on one sample, given the forward FLOPs of the sparse and of the dense model.

        The backward pass costs twice the forward (Evci et al. 2020, appendix H).
        """
        return 3 * sparse


def everything(params: Sequence[SparseParam]) -> Masks:
    """Masks under which all weights live."""
    return {p.name: torch.ones_like(p.mask) for p in params}


def first_score(p: SparseParam) -> Tensor:
    """What first masks are drawn by: chance, or the magnitude, as ``p.init`` says."""
    return p.weight.abs() if p.init == "magnitude" else p.uniform("init")


def ramp(
    params: Sequence[SparseParam],
    share: float,
    start: Sequence[int] | None = None,
    room: Sequence[int] | None = None,
) -> list[int]:
    """How many weights live in each layer on the way down: ``share`` 1 is the start, 0 the planned density.

    Args:
        params: the layers.
        share: of the way that is still to go.
        start: how many lived in each layer; None: all.
        room: how many may live at most; None: all.

    Example:
        >>> from lightning_sparse import GMP, Sparsifier
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), GMP(stop=10), 0.2)
        >>> ramp(list(engine.params.values()), 0.5)
        [60]
    """
    sizes = [p.size for p in params]
    room = sizes if room is None else room
    exact = [p.target + (n - p.target) * share for p, n in zip(params, start or sizes, strict=True)]
    return apportion(exact, min(round(sum(exact)), sum(room)), room, lower=1)


def thin(params: Sequence[SparseParam], share: float) -> list[int]:
    """The same in equal factors: after each equal part of the way, the same share of what lived before is left.

    Example:
        >>> from lightning_sparse import Sparsifier, Static
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), Static(), 0.25)
        >>> thin(list(engine.params.values()), 0.5)
        [50]
    """
    size, target = sum(p.size for p in params), sum(p.target for p in params)
    exact = [p.size * (p.target / p.size) ** share for p in params]
    together = bool(params) and params[0].scope == "global"  # then only the sum counts
    total = size * (target / size) ** share if together else sum(exact)
    return apportion(exact, round(total), [p.size for p in params], lower=1)


def keep_budget(params: Sequence[SparseParam], scores: Masks, counts: Sequence[int], live_only: bool = False) -> Masks:
    """Masks of the best scores: layer by layer, or over all layers together under ``allocation="global"``.

    Args:
        params: the layers.
        scores: by name; larger is better.
        counts: how many to keep in each layer; under "global" only their sum counts.
        live_only: whether dead weights stay dead.

    Returns:
        Masks by name, with exactly ``sum(counts)`` live weights, at least one in every layer; under a pattern that has
        units, whole units, of the nearest number (see :func:`deal`).
    """
    among = {p.name: p.mask if live_only else torch.ones_like(p.mask) for p in params}
    if not params or params[0].scope == "layer":
        if any(p.least > 1 for p in params):
            counts = _deal(params, counts, sum(counts), among)
        pairs = zip(params, counts, strict=True)
        return {p.name: p.keep(scores[p.name], k, among[p.name]) for p, k in pairs}
    device = params[0].mask.device
    wide = torch.float64 if any(s.dtype == torch.float64 for s in scores.values()) else torch.float32
    flat = torch.cat([scores[p.name].flatten().to(device, wide) for p in params])
    allowed = torch.cat([among[p.name].flatten().to(device) for p in params])
    joint = torch.split(keep_top(flat, sum(counts), allowed), [p.size for p in params])
    ranked = [int(part.count_nonzero()) for part in joint]
    final = _deal(params, ranked, sum(counts), among)  # no layer may die
    return {p.name: p.keep(scores[p.name], k, among[p.name]) for p, k in zip(params, final, strict=True)}


def _deal(params: Sequence[SparseParam], counts: Sequence[int], total: int, among: Masks) -> list[int]:
    """Counts that the patterns can have, in proportion to ``counts``."""
    units = [p.unit for p in params]
    room = [int(among[p.name].count_nonzero()) // p.unit * p.unit for p in params]
    least = [min(p.least, r) for p, r in zip(params, room, strict=True)]
    return deal([float(n) for n in counts], total, least, room, units)
