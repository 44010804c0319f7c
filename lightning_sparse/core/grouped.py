"""Patterns in which every group of weights has its share: n of m, and a fixed fan-in."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.masks import keep_best, keep_top
from lightning_sparse.core.patterns import Pattern


class _Grouped(Pattern):
    """Every group of weights has its share; which of the group live is free."""

    @abstractmethod
    def groups(self, tensor: Tensor) -> Tensor:
        """One row a group."""

    @abstractmethod
    def back(self, groups: Tensor, shape: Size) -> Tensor:
        """The inverse of :meth:`groups`."""

    @abstractmethod
    def enough(self, live: Tensor) -> Tensor:
        """How many of each group must be there again after an update, given how many live before."""

    def live(self, mask: Tensor) -> Tensor:
        """How many of each group live."""
        return self.groups(mask).sum(1, dtype=torch.int32)

    def best(self, scores: Tensor, need: Tensor, among: Tensor) -> Tensor:
        """The ``need`` best of each group."""
        return self.back(keep_best(self.groups(scores), need, self.groups(among)), among.shape)

    def shrink(self, scores: Tensor, k: int, among: Tensor, spare: Tensor | None = None) -> Tensor:
        """See :meth:`Pattern.shrink`: no group drops more than it could grow again."""
        if spare is None:
            return keep_top(scores, k, among)
        need = self.enough(self.live(among)) - self.live(spare)
        kept = self.best(scores, need.clamp_(min=0), among)
        return kept | keep_top(scores, max(0, k - int(kept.count_nonzero())), among & ~kept)


@dataclass(frozen=True)
class NM(_Grouped):
    """At least ``n`` of ``m`` consecutive inputs live, for each output and kernel position: 2:4 and its like.

    Groups run along the inputs (dimension 1), which a matrix product sums over: there semi-structured kernels look for
    them, and for convolutions in channels-last order. The density is n / m; above it, on the way down from dense, the
    rest goes to the best weights anywhere. A layer whose inputs are no multiple of ``m`` stays dense, with a warning.
    Training itself is no faster: that needs kernels for this format. Sources: Mishra et al. 2021,
    https://arxiv.org/abs/2104.08378; Zhou et al. 2021, https://arxiv.org/abs/2102.04010.

    Args:
        n: how many of a group live, from 1 to ``m - 1``.
        m: the size of a group.

    Raises:
        ValueError: on numbers that make no pattern.

    Example:
        >>> scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.1, 0.4, 0.2, 0.3]])
        >>> NM(2, 4).keep(scores, 4, torch.ones(1, 8).bool()).int().tolist()
        [[1, 1, 0, 0, 0, 1, 0, 1]]
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Check the numbers."""
        whole = type(self.n) is int and type(self.m) is int
        raise_problems([] if whole and 1 <= self.n < self.m else [f"1 <= n < m, got n={self.n!r}, m={self.m!r}"], "NM")

    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """See :meth:`Pattern.fill`: each group gets its ``n``, the rest goes to the best anywhere."""
        allowed = among & ~kept
        short = (self.n - self.live(kept)).clamp_(min=0)
        made = kept | self.best(scores, short, allowed)
        left = k - int(made.count_nonzero())
        if left < 0:
            raise ValueError(f"{self} cannot keep {k} of {kept.numel()} weights: its groups need {k - left}")
        return made | keep_top(scores, left, allowed & ~made) if left else made

    def groups(self, tensor: Tensor) -> Tensor:
        """(outputs, inputs, kernel) as (outputs * kernel * inputs / m, m)."""
        return tensor.reshape(*tensor.shape[:2], -1).transpose(1, 2).reshape(-1, self.m)

    def back(self, groups: Tensor, shape: Size) -> Tensor:
        """The inverse of :meth:`groups`."""
        return groups.view(shape[0], -1, shape[1]).transpose(1, 2).reshape(shape)

    def enough(self, live: Tensor) -> Tensor:
        """``n``."""
        return live.clamp(max=self.n)

    def holds(self, mask: Tensor) -> bool:
        """Whether each group has its ``n``."""
        return bool((self.live(mask) >= self.n).all())

    def least(self, shape: Size) -> int:
        """Exactly ``n`` of each group."""
        return shape.numel() // self.m * self.n

    def misfit(self, shape: Size) -> str:
        """Inputs must be groups of ``m``."""
        return f"{shape[1]} inputs are no multiple of {self.m}" if shape[1] % self.m else ""

    def fixed_density(self) -> float | None:
        """The density n / m."""
        return self.n / self.m


@dataclass(frozen=True)
class FanIn(_Grouped):
    """Every output reads the same number of weights: rows of equal length, which condensed kernels need.

    A row is an output with everything it reads (inputs times kernel). Counts are planned in whole rows of weights, at
    least one for each output; a count that is none gives the rest, one each, to the rows whose next weight is best.
    Source: Lasby et al. 2024 (SRigL), https://arxiv.org/abs/2305.02299, section 3; without its ablation of neurons.

    Example:
        >>> scores = torch.tensor([[9.0, 8.0, 7.0], [3.0, 1.0, 2.0]])
        >>> FanIn().keep(scores, 2, torch.ones(2, 3).bool()).int().tolist()
        [[1, 0, 0], [1, 0, 0]]
    """

    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """See :meth:`Pattern.fill`."""
        each, rest = divmod(k, kept.shape[0])
        have, allowed = self.live(kept), among & ~kept
        rest -= int((have > each).sum())
        if rest < 0 or bool((have > each + 1).any()):
            raise ValueError(f"{self} cannot keep {k} of {kept.numel()} weights: a row has {int(have.max())} already")
        made = kept | self.best(scores, (each - have).clamp_(min=0), allowed)
        if rest == 0:
            return made
        left = self.groups(allowed & ~made)
        best = keep_best(self.groups(scores), left.any(1).long(), left)
        real = self.groups(scores).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        following = torch.where(best, real, -torch.inf).amax(1)
        rows = keep_top(following, rest, best.any(1) & (have <= each))
        return made | self.back(best & rows[:, None], kept.shape)

    def groups(self, tensor: Tensor) -> Tensor:
        """(outputs, the rest)."""
        return tensor.flatten(1)

    def back(self, groups: Tensor, shape: Size) -> Tensor:
        """The inverse of :meth:`groups`."""
        return groups.reshape(shape)

    def enough(self, live: Tensor) -> Tensor:
        """As many as before."""
        return live

    def holds(self, mask: Tensor) -> bool:
        """Whether rows are as long as each other, to one weight."""
        low, high = self.live(mask).aminmax()
        return bool(high - low <= 1)

    def unit(self, shape: Size) -> int:
        """One weight for each output."""
        return shape[0]
