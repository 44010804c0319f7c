"""The latent weights of one optimizer, swapped in for its steps and out after them."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_sparse.core.algorithm import Algorithm
from lightning_sparse.core.latent import Latent, catch_up, latents, show
from lightning_sparse.core.param import SparseParam


class Swap:
    """What goes into the parameters that an optimizer steps, and what comes out.

    Args:
        algorithm: planned for the run; nothing is swapped where it has no latent weights.

    Attributes:
        inside: whether the parameters hold the latent weights now, for the optimizer to step.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self.inside = False
        self._pulled: dict[str, RemovableHandle | None] = {}  # whose gradients are those of the latent weights
        self._arrived: set[str] = set()  # whose are not any more: a backward pass came since

    def pull_back(self, params: Sequence[SparseParam]) -> None:
        """Gradients are final: turn those that are new into those of the latent weights, in place."""
        if not isinstance(self._algorithm, Latent):
            return
        for p in latents(params):
            weight, done = p.place.weight, p.name in self._pulled and p.name not in self._arrived
            if weight.grad is None or done:
                continue
            weight.grad.copy_(self._algorithm.pull_back(p, weight.grad))
            self._arrived.discard(p.name)
            if p.name not in self._pulled:
                self._pulled[p.name] = self._watch(p)

    def forget(self) -> None:
        """The gradients that come next are new."""
        for handle in self._pulled.values():
            if handle is not None:
                handle.remove()
        self._pulled, self._arrived = {}, set()

    def enter(self, params: Sequence[SparseParam], scale: Tensor | None) -> None:
        """The optimizer steps next: give it the latent weights, and what their penalty adds to the gradients."""
        assert isinstance(self._algorithm, Latent)
        for p in latents(params):
            assert p.latent is not None
            gradient, extra = p.place.weight.grad, self._algorithm.penalty_gradient(p)
            if gradient is not None and extra is not None:
                gradient.add_(extra if scale is None else extra * scale)
            p.place.weight.copy_(p.latent)
        self.inside = True

    def leave(self, params: Sequence[SparseParam]) -> None:
        """The optimizer has stepped, or failed: what is in the parameters now are the new latent weights."""
        if not isinstance(self._algorithm, Latent):
            return
        if self.inside:
            for p in latents(params):
                self._algorithm.absorb(p, p.place.weight.detach())
            self.inside = False
        else:
            catch_up(self._algorithm, params)

    def restore(self, params: Sequence[SparseParam]) -> None:
        """Show the effective weights again, after a step that failed or while a closure evaluates once more."""
        if self.inside:
            self.leave(params)
            show(self._algorithm, params)

    def look(self, params: Sequence[SparseParam], step: int, training: bool | None = None) -> None:
        """Show these weights as a forward pass of step ``step`` wants them.

        Args:
            params: the weights.
            step: the optimizer step that comes.
            training: whether it wants samples; None asks the weights' modules.
        """
        if self.inside or not isinstance(self._algorithm, Latent):
            return
        for p in latents(params):
            wanted = p.place.module.training if training is None else training
            if self._algorithm.noisy and p.noisy != wanted:
                catch_up(self._algorithm, [p])
                p.step = step
                show(self._algorithm, [p], wanted)

    def _watch(self, p: SparseParam) -> RemovableHandle | None:
        """Take note when a backward pass adds to the gradient; clipping and the like leave it what it is."""
        if not p.place.weight.requires_grad:  # frozen after its backward pass: no other comes
            return None

        def arrived(weight: Tensor) -> None:
            self._arrived.add(p.name)

        handle: RemovableHandle = p.place.weight.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
        return handle
