"""One masked parameter as an algorithm sees it."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_sparse.core.compact import Compact
from lightning_sparse.core.masks import all_bits
from lightning_sparse.core.patterns import Pattern, Unstructured, outputs_first, seen
from lightning_sparse.core.select import Target, inputs_first, targets
from lightning_sparse.core.sharded import full, is_sharded, local, same_places, shard_like

Init = Literal["random", "magnitude"]


class SparseParam:
    """What an algorithm may look at, and the one place it may write: ``state``.

    Example:
        >>> from lightning_sparse import Sparsifier, Static
        >>> p = Sparsifier(torch.nn.Linear(10, 10), Static(), 0.2).params["weight"]
        >>> p.live, p.size, int(p.keep(p.weight.abs(), 5, p.mask).sum())
        (20, 100, 5)

    Attributes:
        name: of the parameter in the model.
        live: number of live weights, ``mask.sum()``.
        state: tensors that the algorithm keeps between steps; they are saved in checkpoints.
        density: the share of live weights this layer was given, in (0, 1].
        target: the same as an integer number of weights.
        pattern: the shape that live weights may take.
        scope: "layer", or "global" when all layers compete for one budget.
        init: how the first mask is drawn: "random" or "magnitude".
        step: optimizer steps taken when the algorithm is called.
        free: whether the density is an outcome of the training, and nothing steers it.
        latent: the weights that the optimizer steps, where ``weight`` is computed from them; else None.
        scratch: tensors of this very step, such as gradients of thresholds.
        size: number of weights.
    """

    def __init__(
        self,
        place: Target,
        *,
        density: float,
        target: int,
        pattern: Pattern,
        seed: int = 0,
        init: Init = "random",
        scope: Literal["layer", "global"] = "layer",
        free: bool = False,
    ) -> None:
        self.place, self.name = place, place.name
        self.density, self.target, self.pattern = density, target, pattern
        self.seed, self.init, self.scope, self.free = seed, init, scope, free
        self.size = place.weight.numel()
        self.state: dict[str, Tensor] = {}
        self.dense_grad: Tensor | None = None  # what `grad` shows; the engine's to fill and to empty
        self.latent: Tensor | None = None  # what the optimizer steps, where the weight is a function of it
        self.scratch: dict[str, Tensor] = {}  # of this very step; never saved
        self.noisy = False  # whether the weight is a sample of what it stands for
        self.written = (-1, 0)  # version and place of the weight as the engine left it
        self.step = 0
        self.resized = False  # whether the weight has lost channels, or another one of the model
        self.set_mask(torch.ones(place.shape, dtype=torch.bool))
        self._shape = seen(place)
        # a free pattern needs no order: ties then go by the index in the weight as it is stored
        self._turns = inputs_first(place.module) and not isinstance(pattern, Unstructured)

    @property
    def weight(self) -> Tensor:
        """The weight as it is now; zero where the mask is False.

        Whole, also where processes share it: then all of them must ask, here and for the gradient.
        """
        if self.compact is not None:
            return self.compact.dense_weight().detach()
        return full(self.place.weight.detach())

    @property
    def mask(self) -> Tensor:
        """Bool, True where the weight lives. Only the engine sets it."""
        return self.compact.mask if self.compact is not None else self._mask

    @property
    def compact(self) -> Compact | None:
        """The layer that holds live weights only; None where zeros are held too, and ``place.weight`` is whole."""
        module = self.place.module
        return module if isinstance(module, Compact) else None

    @property
    def grad(self) -> Tensor:
        """The dense gradient of the last optimizer step: averaged over ranks, accumulated, unscaled.

        Raises:
            RuntimeError: if the engine did not keep it; the algorithm's ``needs_gradient`` says when it must.
        """
        if self.dense_grad is None:
            raise RuntimeError(f"{self.name}: no gradient at step {self.step}; needs_gradient() did not ask for it")
        return full(self.dense_grad)

    @property
    def unit(self) -> int:
        """Budgets of this layer are multiples of it: 1, or what its pattern keeps and drops as one."""
        return self.pattern.unit(self._shape)

    @property
    def least(self) -> int:
        """The smallest budget of this layer."""
        return self.pattern.least(self._shape)

    def whole(self, count: float) -> int:
        """The nearest budget that this layer can have."""
        return self.pattern.whole(count, self._shape)

    def keep(self, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """Mask of the ``k`` best ``scores`` among the allowed entries, in this parameter's pattern."""
        return self._turned(self.pattern.keep(self._turned(scores), k, self._turned(among)))

    def shrink(self, scores: Tensor, k: int, among: Tensor, spare: Tensor | None = None) -> Tensor:
        """The best ``k`` of ``among``, or more, that :meth:`fill` completes; see :meth:`Pattern.shrink`."""
        spare = None if spare is None else self._turned(spare)
        return self._turned(self.pattern.shrink(self._turned(scores), k, self._turned(among), spare))

    def fill(self, kept: Tensor, scores: Tensor, k: int, among: Tensor) -> Tensor:
        """``kept`` and the best others, ``k`` in all, in this parameter's pattern; see :meth:`Pattern.fill`."""
        return self._turned(self.pattern.fill(self._turned(kept), self._turned(scores), k, self._turned(among)))

    def holds(self, mask: Tensor) -> bool:
        """Whether a mask has this parameter's pattern."""
        return self.pattern.holds(self._turned(mask))

    def _turned(self, tensor: Tensor) -> Tensor:
        return outputs_first(tensor, self.place.module) if self._turns else tensor

    def uniform(self, salt: str = "", shape: torch.Size | None = None) -> Tensor:
        """Random numbers in [0, 1), float32, of ``shape`` or the weight's: a function of (seed, name, step, salt).

        The same on every rank and device, and after a resume; the global random state is not touched.
        """
        text = f"{self.seed}/{self.name}/{self.step}/{salt}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(self.place.shape if shape is None else shape, generator=generator)
        return numbers.to(self.place.weight.device)

    def fit(self) -> None:
        """Follow the weight to another device or dtype (the engine's business)."""
        weight = self.place.weight
        if self.compact is not None:
            return
        if self._sharded and not is_sharded(weight):
            raise RuntimeError(
                f"{self.name} is gathered from its shards while an optimizer steps, which changes only these; call "
                "reshard() on its FSDP module before the step (set_reshard_after_backward(False) leaves that to you)"
            )
        moved = weight.device != self.mask.device or local(weight).shape != self.bits.shape
        if moved or weight.dtype.itemsize != self.bits.dtype.itemsize:
            self.set_mask(self.mask)
            if self.latent is not None:
                self.latent = self.latent.to(weight)
            self.state = {key: value.to(weight.device) for key, value in self.state.items()}

    def set_mask(self, mask: Tensor) -> None:
        """Take a new mask (the engine's business)."""
        weight = self.place.weight
        self.live = int(mask.count_nonzero())
        self._sharded = is_sharded(weight)
        if self.compact is not None:
            if not torch.equal(self.compact.mask, mask):
                self.compact.move(mask)
            self._mask = self.bits = torch.zeros(0)  # a bool and bits for each dead weight would be the larger part
            return
        self._mask = mask.to(weight.device)
        self.bits = all_bits(shard_like(self._mask, weight), weight.dtype)

    def seat(self, place: Target) -> None:
        """Follow the weight into another module, which holds its zeros or does not (the engine's business)."""
        mask = self.mask
        self.place = place
        self.set_mask(mask)

    def refit(self, mask: Tensor) -> float:
        """Follow the weight to another shape, with a mask for it; returns new by old size (the engine's business)."""
        before, weight = self.size, self.place.weight
        self.size, self._shape = weight.numel(), seen(self.place)
        self.set_mask(mask)
        return self.size / before

    def bits_for(self, tensor: Tensor) -> Tensor:
        """The mask's bits for what this process holds of a gradient (the engine's business)."""
        if same_places(tensor, self.place.weight):
            return self.bits
        return all_bits(shard_like(self.mask, tensor), tensor.dtype)


def densities(params: Mapping[str, SparseParam]) -> dict[str, float]:
    """Live share of each parameter."""
    return {name: p.live / p.size for name, p in params.items()}


def mask_shadow(params: Mapping[str, SparseParam], model: nn.Module) -> None:
    """Zero in another model of these parameters, such as a moving average, what their masks leave out."""
    for place, _ in targets(model):
        p = params.get(place.name) or params.get(place.name.removeprefix("module."))
        if p is None:
            continue
        if isinstance(place.module, Compact):
            if not torch.equal(place.module.mask, mask := p.mask):
                place.module.move(mask)
        else:
            weight = place.weight
            local(weight).masked_fill_(~shard_like(p.mask.to(weight.device), weight), 0.0)
