"""The engine: it alone writes weights, gradients, optimizer state and masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.checkpoint import pack, unpack
from lightning_sparse.core.follower import Follower, replaceable, zero
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.masks import Pattern, Unstructured
from lightning_sparse.core.optstate import mask_history, mask_state
from lightning_sparse.core.param import Init, SparseParam, densities
from lightning_sparse.core.plan import Density
from lightning_sparse.core.prepare import prepare, settle
from lightning_sparse.core.select import clean


class Sparsifier:
    """Keeps a model sparse while any loop trains it.

    Made, it zeroes what its masks leave out; attached to optimizers, it follows every step by itself: gradients are
    masked before, weights after, and masks move when the algorithm says so. No Lightning is needed.

    Args:
        model: any module; parameters keep their names and identity.
        algorithm: which weights live, and when that changes.
        density: live share of all chosen weights together, in (0, 1], or one for each glob over names; None takes the
            pattern's own, else 0.1.
        optimizers: those to attach at once; each weight belongs to one of them at most.
        allocation: "uniform", "er", "erk" or "global"; None takes the algorithm's own.
        pattern: the shape that live weights may take.
        init: "random", or "magnitude" for weights that are trained already.
        include: globs over parameter or module names; None takes :func:`select`'s default.
        exclude: globs of what stays dense.
        seed: of all randomness, which is a function of (seed, name, step) alone.
        total_steps: optimizer steps of the run, for algorithms that count in shares of it.
        epoch_steps: optimizer steps of an epoch, for algorithms that count in epochs.
        state: what :meth:`state_dict` returned: go on from there. Weights must be loaded before.

    Attributes:
        params: the sparse parameters by name.
        plan: the table of layers and densities.
        updates: how often masks have moved.

    Raises:
        ValueError: on impossible densities, unknown names, lazy parameters, a state of another model ...; all at once,
            before any weight is touched.

    Example:
        >>> from lightning_sparse import RigL
        >>> model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparsifier = Sparsifier(model, RigL(every=2, stop=8), 0.1, optimizers=[optimizer])
        >>> for _ in range(10):
        ...     loss = model(torch.randn(16, 20)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> sparsifier.density(), sparsifier.updates
        (0.1, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm,
        density: Density | None = None,
        *,
        optimizers: Iterable[Optimizer] = (),
        allocation: AllocationName | None = None,
        pattern: Pattern | None = None,
        init: Init = "random",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
        total_steps: int | None = None,
        epoch_steps: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        optimizers = list(optimizers)
        prepared = prepare(
            model,
            algorithm,
            density,
            optimizers=optimizers,
            allocation=allocation,
            pattern=pattern or Unstructured(),
            init=init,
            include=include,
            exclude=exclude,
            seed=seed,
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            restored=state is not None,
        )
        self.algorithm, self.plan, self.params = prepared
        self.updates = 0
        self._followers: list[Follower] = []
        self._steps = dict.fromkeys(self.params, 0)
        self._overdue: frozenset[str] = frozenset()
        self._check_shared(optimizers)
        if state is not None:
            self.load_state_dict(state)
        else:
            for name, mask in self.algorithm.init(list(self.params.values())).items():
                self.params[name].set_mask(mask)
            self._zero()
        self.plan = settle(self.plan, self.params)
        for optimizer in optimizers:
            self.attach(optimizer)

    @property
    def masks(self) -> Masks:
        """Bool masks by parameter name, True where a weight lives."""
        return {name: p.mask for name, p in self.params.items()}

    def densities(self) -> dict[str, float]:
        """Live share of each layer."""
        return densities(self.params)

    def density(self) -> float:
        """Live share over all layers."""
        return sum(p.live for p in self.params.values()) / sum(p.size for p in self.params.values())

    @property
    def steps(self) -> int:
        """Optimizer steps taken (the most, where several optimizers step)."""
        return max(self._all_steps().values())

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; its present state is masked. Attaching twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if it steps a weight that another attached optimizer steps too.
        """
        replaceable(self.algorithm, unwrap(optimizer))
        self._check_shared([*(f.optimizer for f in self._followers if f.alive), optimizer])
        self._follower(unwrap(optimizer))

    def unattached(self) -> list[str]:
        """Sparse parameters that no attached optimizer steps."""
        followed = {p.name for follower in self._followers for p in follower.params}
        return [name for name in self.params if name not in followed]

    def detach(self) -> None:
        """Let go of all optimizers. Masks stay as they are, and nothing enforces them any more."""
        self._steps, self._overdue = self._all_steps(), self._all_overdue()
        for follower in self._followers:
            follower.remove()
        self._followers = []

    def restart(self, algorithm: Algorithm, steps: int = 0) -> None:
        """Count on from ``steps``, under ``algorithm`` as planned for the new run; masks stay."""
        self.detach()
        self.algorithm = algorithm
        self._steps, self._overdue = dict.fromkeys(self.params, steps), frozenset()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def stage(self, optimizer: Optimizer) -> None:
        """Gradients are final: keep what the algorithm needs of them, then mask them.

        Happens by itself before every step. Call it earlier where something must see masked gradients, such as clipping
        in a loop of your own.
        """
        self._follower(unwrap(optimizer)).stage()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def commit(self, optimizer: Optimizer) -> None:
        """The step has happened: count it, move masks if that is due, zero what is dead. Happens by itself."""
        self._follower(unwrap(optimizer)).commit()

    def discard(self) -> None:
        """Forget what was staged for a step that never happened (a gradient scaler skipped it)."""
        for follower in self._followers:
            follower.discard()

    @torch.no_grad()
    def shadow(self, model: nn.Module) -> None:
        """Mask a moving average of the model too: an average over different masks is dense."""
        for name, weight in model.named_parameters():
            p = self.params.get(clean(name)) or self.params.get(clean(name).removeprefix("module."))
            if p is not None:
                weight.masked_fill_(~p.mask.to(weight.device), 0.0)

    def finalize(self) -> None:
        """Training is over: zero what is dead once more and let go. The model is plain, with zeros in its weights."""
        self.detach()
        self._zero()

    def state_dict(self) -> dict[str, Any]:
        """Masks (a bit a weight), step counts and the algorithm's own state: tensors, ints and plain containers."""
        return pack(self.params, self.algorithm, self._all_steps(), self._all_overdue(), self.updates)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; weights outside the saved masks are zeroed. Load the model's weights before.

        Raises:
            ValueError: if it belongs to another model or density, or is torn; nothing is changed then.
        """
        saved = unpack(state, self.params, self.algorithm)
        followed = [follower.optimizer for follower in self._followers if follower.alive]
        self.detach()
        self._steps, self._overdue, self.updates = saved.steps, saved.overdue, saved.updates
        for name, p in self.params.items():
            p.set_mask(saved.masks[name])
            p.state = {key: value.clone().to(p.mask.device) for key, value in saved.states[name].items()}
        self._zero()
        for optimizer in followed:
            self._follow(optimizer)

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take the masks of a saved state, with whose weights the model was loaded; steps go on being counted.

        Raises:
            ValueError: as :meth:`load_state_dict`.
        """
        steps = self._all_steps()
        self.load_state_dict(state)
        self._steps = steps

    @torch.no_grad()
    def _zero(self) -> None:
        zero(list(self.params.values()))

    def _all_steps(self) -> dict[str, int]:
        return {**self._steps, **{p.name: follower.steps for follower in self._followers for p in follower.params}}

    def _all_overdue(self) -> frozenset[str]:
        followed = {p.name for follower in self._followers for p in follower.params}
        late = {p.name for follower in self._followers if follower.overdue for p in follower.params}
        return frozenset(late | (self._overdue - followed))

    def _check_shared(self, optimizers: Sequence[Optimizer]) -> None:
        stepped: dict[str, Optimizer] = {}
        for optimizer in map(unwrap, optimizers):
            names = [p.name for p in self._owned(optimizer)]
            if both := [name for name in names if stepped.get(name, optimizer) is not optimizer]:
                raise ValueError(f"two optimizers step the same weights: {', '.join(both)}; give each to one")
            stepped |= dict.fromkeys(names, optimizer)

    def _count_update(self) -> None:
        self.updates += 1

    def _owned(self, optimizer: Optimizer) -> list[SparseParam]:
        ids = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        return [p for p in self.params.values() if id(p.place.weight) in ids]

    def _follower(self, optimizer: Optimizer) -> Follower:
        for follower in self._followers:
            if follower.follows(optimizer):
                follower.refresh()
                return follower
        return self._follow(optimizer)

    def _follow(self, optimizer: Optimizer) -> Follower:
        owned = self._owned(optimizer)
        self._steps, self._overdue = self._all_steps(), self._all_overdue()
        names = {p.name for p in owned}
        for other in list(self._followers):  # an optimizer was replaced during the run: the new one takes its weights
            other.params = [p for p in other.params if p.name not in names]
            if not other.alive or not other.params:
                other.remove()
                self._followers.remove(other)
        for p in owned:
            mask_state(optimizer, p.place.weight, p.mask)
        mask_history(optimizer, owned)
        zero(owned)
        follower = Follower(
            optimizer,
            self._owned,
            self.algorithm,
            steps=max((self._steps[name] for name in names), default=0),
            overdue=bool(names & self._overdue),
            moved=self._count_update,
        )
        self._followers.append(follower)
        return follower
