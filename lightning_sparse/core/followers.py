"""All the optimizers that step sparse parameters, and the counts that outlive them."""

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary, WeakSet

from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.follower import Follower, replaceable, zero
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.latent import catch_up, show
from lightning_sparse.core.optstate import carry_state, mask_history, meet_state, tell_mask
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.rewind import Rewinder

_FOLLOWING: WeakKeyDictionary[Optimizer, WeakSet[Follower]] = WeakKeyDictionary()  # of all engines


class Followers:
    """One follower for each attached optimizer; a weight belongs to one of them at most.

    Args:
        params: the sparse parameters by name.
        algorithm: planned for the run.
        rewinder: is told of every step.
        moved: called after masks moved.
    """

    def __init__(
        self,
        params: Mapping[str, SparseParam],
        algorithm: Algorithm,
        rewinder: Rewinder,
        moved: Callable[[], None],
    ) -> None:
        self._params, self._rewinder, self._moved = params, rewinder, moved
        self.algorithm = algorithm
        self.all: list[Follower] = []
        self._steps = dict.fromkeys(params, 0)
        self._overdue: frozenset[str] = frozenset()

    @property
    def steps(self) -> dict[str, int]:
        """Optimizer steps taken, by parameter."""
        return {**self._steps, **{p.name: follower.steps for follower in self.all for p in follower.params}}

    @property
    def overdue(self) -> frozenset[str]:
        """Parameters whose update waits for a finite gradient."""
        followed = {p.name for follower in self.all for p in follower.params}
        late = {p.name for follower in self.all if follower.overdue for p in follower.params}
        return frozenset(late | (self._overdue - followed))

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that are followed and still exist."""
        return [follower.optimizer for follower in self.all if follower.alive]

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if it steps a weight that another one steps too.
        """
        replaceable(self.algorithm, unwrap(optimizer))
        self.check([*self.optimizers, optimizer])
        self.of(optimizer)

    def unattached(self) -> list[str]:
        """Sparse parameters that no attached optimizer steps."""
        followed = {p.name for follower in self.all for p in follower.params}
        return [name for name in self._params if name not in followed]

    def detach(self) -> None:
        """Let go of all optimizers, and keep the counts."""
        self._steps, self._overdue = self.steps, self.overdue
        for follower in list(self.all):
            self._leave(follower)
        self._rewinder.rest()

    def count_from(self, steps: Mapping[str, int], overdue: frozenset[str] = frozenset()) -> None:
        """Go on from these counts; nothing is attached now."""
        self._steps, self._overdue = dict(steps), overdue

    def check(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuse two optimizers that step one weight.

        Raises:
            ValueError: with its name.
        """
        stepped: dict[str, Optimizer] = {}
        for optimizer in map(unwrap, optimizers):
            names = [p.name for p in self._owned(optimizer)]
            if both := [name for name in names if stepped.get(name, optimizer) is not optimizer]:
                raise ValueError(f"two optimizers step the same weights: {', '.join(both)}; give each to one")
            stepped |= dict.fromkeys(names, optimizer)

    def of(self, optimizer: Optimizer) -> Follower:
        """The follower of an optimizer; a new one where it is not followed yet."""
        optimizer = unwrap(optimizer)
        for follower in self.all:
            if follower.follows(optimizer):
                follower.refresh()
                return follower
        return self._follow(optimizer)

    def _owned(self, optimizer: Optimizer) -> list[SparseParam]:
        ids = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        return [p for p in self._params.values() if id(p.place.weight) in ids]

    def _stepped(self, optimizer: Optimizer, step: int) -> None:
        for changed in self._rewinder.step(optimizer, self._owned(optimizer), self.algorithm, step):
            for follower in self._others(changed):  # other engines: what they have pruned stays so
                for p in follower.params:
                    carry_state(changed, p, p.mask)
                mask_history(changed, follower.params)
                zero(follower.params)

    def _others(self, optimizer: Optimizer) -> list[Follower]:
        """Followers of an optimizer in other engines."""
        return [follower for follower in _FOLLOWING.get(optimizer, ()) if follower not in self.all]

    def _refuse_two_ways(self, optimizer: Optimizer, owned: Sequence[SparseParam]) -> None:
        """Latent weights are no part of what an optimizer goes back to.

        Raises:
            ValueError: if one engine rewinds this optimizer and another keeps latent weights of its.
        """
        others = self._others(optimizer)
        rewound = self.algorithm.rewind_step is not None
        theirs = [p for follower in others for p in follower.params]
        mine = owned if any(follower.algorithm.rewind_step is not None for follower in others) else []
        if latent := [p.name for p in [*(theirs if rewound else []), *mine] if p.latent is not None]:
            raise ValueError(
                f"an optimizer cannot go back to an early state while {', '.join(latent)} are computed from latent "
                "weights, which stay; give rewind=None, or an algorithm without latent weights"
            )

    def _leave(self, follower: Follower) -> None:
        follower.remove()
        self.all.remove(follower)
        for followers in _FOLLOWING.values():
            followers.discard(follower)

    def _follow(self, optimizer: Optimizer) -> Follower:
        owned = self._owned(optimizer)
        self._refuse_two_ways(optimizer, owned)
        self._steps, self._overdue = self.steps, self.overdue
        names = {p.name for p in owned}
        for other in list(self.all):  # an optimizer was replaced during the run: the new one takes its weights
            kept = [p for p in other.params if p.name not in names]
            if not other.alive or (other.params and not kept):  # one without sparse weights stays
                self._leave(other)
            other.params = kept
        self._rewinder.start(optimizer, owned, self.algorithm, self._steps)
        plain = [p for p in owned if p.latent is None]
        for p in owned:
            if p.latent is None:
                meet_state(optimizer, p)
            else:
                tell_mask(optimizer, p)
        mask_history(optimizer, plain)
        zero(plain)
        catch_up(self.algorithm, owned, compare=True)  # with weights that were loaded, or an average that was left
        show(self.algorithm, owned)
        follower = Follower(
            optimizer,
            self._owned,
            self.algorithm,
            steps=max((self._steps[name] for name in names), default=0),
            overdue=bool(names & self._overdue),
            moved=self._moved,
            stepped=self._stepped,
        )
        self.all.append(follower)
        _FOLLOWING.setdefault(optimizer, WeakSet()).add(follower)
        return follower
