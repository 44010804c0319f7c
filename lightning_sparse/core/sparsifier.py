"""The engine: it alone writes weights, gradients, optimizer state and masks."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.checkpoint import fill, pack, unpack
from lightning_sparse.core.follower import zero
from lightning_sparse.core.followers import Followers
from lightning_sparse.core.forward import ForwardHooks
from lightning_sparse.core.hooks import unwrap
from lightning_sparse.core.latent import Latent, centre, settle_latents, show, start_latents, unreached
from lightning_sparse.core.param import Init, SparseParam, densities, mask_shadow
from lightning_sparse.core.patterns import Pattern
from lightning_sparse.core.plan import Density
from lightning_sparse.core.prepare import prepare, settle, settle_targets
from lightning_sparse.core.probe import Loss, Probe, first_masks
from lightning_sparse.core.resize import fit_shapes, resize_params
from lightning_sparse.core.rewind import Rewinder
from lightning_sparse.core.sharded import reshard
from lightning_sparse.core.surgery import Cuts


class Sparsifier:
    """Keeps a model sparse while any loop trains it.

    Made, it zeroes what its masks leave out; attached to optimizers, it follows every step by itself: gradients are
    masked before, weights after, and masks move when the algorithm says so. No Lightning is needed.

    Args:
        model: any module; parameters keep their names and identity.
        algorithm: which weights live, and when that changes.
        density: live share of all chosen weights, in (0, 1], or one for each glob; None: the pattern's own, else 0.1.
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
        batches: what SNIP and GraSP look at before training.
        loss: of a model and one of the batches, for these.
        example_inputs: what the model takes, for SynFlow.

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
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        example_inputs: Any = None,
    ) -> None:
        optimizers = list(optimizers)
        reshard(model)
        prepared = prepare(
            model,
            algorithm,
            density,
            optimizers=optimizers,
            allocation=allocation,
            pattern=pattern,
            init=init,
            include=include,
            exclude=exclude,
            seed=seed,
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            restored=state is not None,
            data=(batches, loss, example_inputs),
        )
        self.algorithm, self.plan, self.params = prepared
        self.updates = 0
        self._model, self._rewinder = model, Rewinder(model)
        self._forward: ForwardHooks | None = None
        self._followers = Followers(self.params, self.algorithm, self._rewinder, self._count_update)
        self._followers.check(optimizers)
        if state is not None:
            self.load_state_dict(state)
        else:
            params = list(self.params.values())
            start_latents(self.algorithm, params)
            masks = first_masks(self.algorithm, params, lambda: Probe(model, batches, loss, example_inputs))
            for name, mask in masks.items():
                self.params[name].set_mask(mask)
            settle_targets(self.algorithm, params)
            show(self.algorithm, params)
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

    def settled(self) -> bool:
        """Whether the density is the final one, of this run or of one before."""
        live, target = sum(p.live for p in self.params.values()), sum(p.target for p in self.params.values())
        return self.algorithm.settled(self.steps) or (self.algorithm.only_falls and live <= target)

    @property
    def rewinds(self) -> int:
        """How often weights went back to an early state."""
        return self._rewinder.count

    @property
    def steps(self) -> int:
        """Optimizer steps taken (the most, where several optimizers step)."""
        return max(self._followers.steps.values())

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer from its next step on; its present state is masked. Attaching twice changes nothing.

        Raises:
            TypeError: if it has no step hooks.
            ValueError: if it steps a weight that another attached optimizer steps too.
        """
        reshard(self._model)
        self._followers.attach(optimizer)
        self._sample()

    def unattached(self) -> list[str]:
        """Sparse parameters that no attached optimizer steps."""
        return self._followers.unattached()

    def detach(self) -> None:
        """Let go of all optimizers. Masks stay as they are, and nothing enforces them any more."""
        if self._forward is not None:
            self._forward.remove()
        self._forward = None
        self._followers.detach()

    def restart(self, algorithm: Algorithm, steps: int = 0) -> None:
        """Count on from ``steps``, under ``algorithm`` as planned for the new run; masks stay."""
        self.detach()
        self.algorithm = self._followers.algorithm = algorithm
        self._followers.count_from(dict.fromkeys(self.params, steps))
        if steps == 0:
            self._rewinder.forget()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def stage(self, optimizer: Optimizer) -> None:
        """Gradients are final: keep what the algorithm needs of them, then mask them.

        Happens by itself before every step. Call it earlier where something must see masked gradients, such as clipping
        in a loop of your own.
        """
        self._followers.of(optimizer).stage()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def commit(self, optimizer: Optimizer) -> None:
        """The step has happened: count it, move masks if that is due, zero what is dead. Happens by itself."""
        self._followers.of(optimizer).commit()

    def discard(self) -> None:
        """Forget what was staged for a step that never happened (a gradient scaler skipped it)."""
        for follower in self._followers.all:
            follower.discard()

    def too_short(self, total_steps: int | None) -> str:
        """What will not happen in a run of that length, and the way out; empty when all is well."""
        return unreached(self.algorithm, self.params, total_steps) or self.algorithm.too_short(total_steps)

    @torch.no_grad()
    def shadow(self, model: nn.Module) -> None:
        """Mask a moving average of the model too: an average over different masks is dense."""
        mask_shadow(self.params, model)

    def finalize(self) -> None:
        """Training is over: zero what is dead once more and let go. The model is plain, with zeros in its weights."""
        self.detach()
        settle_latents(list(self.params.values()))
        self._zero()

    def resize(self, cuts: Cuts, optimizers: Iterable[Optimizer] = ()) -> None:
        """Channels were cut to these indices: masks follow. Call `detach` before the cut and `attach` after this."""
        self._rewinder.resize(cuts, map(unwrap, optimizers))
        resize_params(self.params, cuts, self.algorithm, self._followers.steps)
        self.plan = settle(self.plan, self.params)
        show(self.algorithm, list(self.params.values()))
        self._zero()

    def state_dict(self) -> dict[str, Any]:
        """Masks (a bit a weight), step counts and the algorithm's own state: tensors, ints and plain containers."""
        follow = self._followers
        return pack(self.params, self.algorithm, follow.steps, follow.overdue, self.updates, self._rewinder)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; weights outside the saved masks are zeroed. Load the model's weights before.

        Raises:
            ValueError: if it belongs to another model or density, or is torn; nothing is changed then.
        """
        fit_shapes(self.params)
        saved = unpack(state, self.params, self.algorithm)
        reshard(self._model)
        followed = self._followers.optimizers
        self.detach()
        self._followers.count_from(saved.steps, saved.overdue)
        self.updates = saved.updates
        fill(self.params, saved)
        if not saved.own:  # only its masks and counts are of use
            start_latents(self.algorithm, list(self.params.values()))
        self._rewinder.load_state_dict(state.get("rewinder", {}), self.algorithm, saved.steps)
        show(self.algorithm, list(self.params.values()))
        self._zero()
        for optimizer in followed:
            self.attach(optimizer)

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take the masks of a saved state, with whose weights the model was loaded; errors as `load_state_dict`'s."""
        steps, attached = self._followers.steps, self._followers.optimizers
        self.load_state_dict(state)
        self.detach()
        self._followers.count_from(steps)
        for optimizer in attached:
            self.attach(optimizer)

    @torch.no_grad()
    def _zero(self) -> None:
        reshard(self._model)
        zero(list(self.params.values()))

    def _count_update(self) -> None:
        self.updates += 1

    def _sample(self) -> None:
        """See to it that training passes get samples, under an algorithm that draws them."""
        if isinstance(self.algorithm, Latent) and self.algorithm.noisy and self._forward is None:
            params = list(self.params.values())
            self._forward = ForwardHooks(self._model, params, self._look, partial(centre, self.algorithm))

    def _look(self, params: Sequence[SparseParam], training: bool | None = None) -> None:
        for follower in self._followers.all:
            follower.look(params, training)

    def sample(self) -> None:
        """A training pass comes: under an algorithm that draws samples, show one. Hooks on the modules do so too."""
        self._look(list(self.params.values()))

    def rest(self) -> None:
        """Validation comes: under an algorithm that draws samples, show the centre. Hooks on the modules do so too."""
        self._look(list(self.params.values()), training=False)
