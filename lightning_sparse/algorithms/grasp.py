"""A mask, chosen before training, through which the gradient flows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_sparse.algorithms.at_init import gradients, refuse_empty_scores, some, wrong_count
from lightning_sparse.core.algorithm import Algorithm, Masks, keep_budget
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.probe import Probe
from lightning_sparse.core.select import clean
from lightning_sparse.core.values import is_number, mistyped


@dataclass(frozen=True)
class GraSP(Algorithm):
    """Keep the weights that the flow of the gradient depends on, before any training.

    With the gradient ``g`` and the Hessian ``H`` of the loss, removing a weight changes ``g . g`` by ``-w * (H g)`` to
    first order; the weights where that is largest are removed, over all layers together (Wang et al. 2020,
    https://arxiv.org/abs/2002.07376, eq. 8 and algorithm 2). Logits are divided by a temperature, and there are as many
    samples of each class. Every layer keeps at least one weight. The mask then stays as it is.

    Differences from the authors' code: the parts that samples come in hold all classes alike (theirs sorts by class and
    splits, so that each half, and its BatchNorm, sees other classes); scores are taken with the weights that are
    trained (theirs draws new ones for linear layers). Needs the loss to be differentiable twice.

    Args:
        samples: of each class; None takes batches as they come, for data that has no classes.
        batches: parts that the samples come in, or how many batches to take where ``samples`` is None.
        temperature: what logits are divided by.
        head: name of the module whose output are the logits; None takes the model's last layer (dense or sparse),
            which must then be the last one that is called.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> x, y = torch.randn(64, 5), torch.arange(64) % 2
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> Sparsifier(nn.Linear(5, 2), GraSP(samples=8), 0.3, batches=[(x, y)], loss=loss).density()
        0.3
    """

    allocation: ClassVar[AllocationName] = "global"
    asks: ClassVar[Literal["nothing", "loss", "inputs"]] = "loss"

    samples: int | None = 25
    batches: int = 2
    temperature: float = 200.0
    head: str | None = None

    def __post_init__(self) -> None:
        """Check what was given, all at once."""
        found = wrong_count("batches", self.batches)
        found += [] if self.samples is None else wrong_count("samples", self.samples)
        if not (is_number(self.temperature) and self.temperature > 0):
            found.append(f"temperature must be positive, got {self.temperature!r}")
        if not found and self.samples is not None and self.samples < self.batches:
            found.append(f"samples must fill every part, got samples={self.samples} for batches={self.batches}")
        raise_problems(found + mistyped(self, found), "GraSP")

    def init_from(self, params: Sequence[SparseParam], probe: Probe) -> Masks:
        """The weights with the largest ``w * (H g)``: what is removed last.

        Raises:
            ValueError: if the loader lacks classes, the head is in doubt, the loss has no curvature, or the scores say
                nothing.
        """
        weights = probe.weights([p.name for p in params])
        modules = {clean(f"{key}.").removesuffix("."): module for key, module in probe.model.named_modules()}
        label, head = self._head(modules)
        parts = self._parts(probe, label, head)
        with _softened(head, self.temperature), _calls(modules, label) as called, _twice_differentiable():
            flow = {name: torch.zeros_like(w) for name, w in weights.items()}
            for part in parts:
                loss = probe.loss(part)
                self._check_calls(label, called)
                for name, gradient in gradients(loss, weights).items():
                    flow[name] += gradient.detach() / len(parts)
            flow = probe.mean(flow)
            scores = {name: torch.zeros_like(w) for name, w in weights.items()}
            for part in parts:
                now = gradients(probe.loss(part), weights, graph=True)
                product = torch.stack([(now[name] * flow[name]).sum() for name in weights]).sum()
                if not product.requires_grad:
                    raise ValueError(
                        f"GraSP: the loss has no curvature in {some(list(weights))}: its gradient does not depend on "
                        "these weights, so no flow can be kept; take SNIP, or a loss that is not linear in the outputs"
                    )
                for name, hessian in gradients(product, weights).items():
                    scores[name] += weights[name].detach() * hessian.detach() / len(parts)
        scores = probe.mean(scores)
        refuse_empty_scores("GraSP", params, scores)
        return keep_budget(params, scores, [p.target for p in params])

    def _head(self, modules: Mapping[str, nn.Module]) -> tuple[str, nn.Module]:
        """The module that makes the logits, and its name: the last that has weights of its own, if none is given."""
        layers = [key for key, module in modules.items() if _has_weights(module)]
        name = self.head if self.head is not None else layers[-1] if layers else ""
        if name not in modules:
            raise ValueError(f"GraSP: head={name!r} is no module; there are {', '.join(filter(None, modules))}")
        return name, modules[name]

    def _check_calls(self, head: str, called: Sequence[str]) -> None:
        """Whether the temperature has done its work: the logits come from the head, and nothing comes after it."""
        if self.temperature == 1:
            return
        if head not in called:
            raise ValueError(
                f"GraSP: no forward pass calls the module {head!r}, whose outputs it would divide by temperature="
                f"{self.temperature}; give head= the module that makes the logits, or temperature=1.0"
            )
        if self.head is None and called[-1] != head:
            raise ValueError(
                f"GraSP: the logits seem to come from {called[-1]!r}, which is called last, not from {head!r}, the "
                f"model's last layer; say which it is: head={called[-1]!r} or head={head!r}"
            )

    def _parts(self, probe: Probe, label: str, head: nn.Module) -> list[Any]:
        if self.samples is None:
            parts = list(islice(probe.batches(), self.batches))
            if len(parts) < self.batches:
                raise ValueError(
                    f"GraSP wants {self.batches} batches, the loader has {len(parts)}; give fewer batches="
                )
            return parts
        classes = getattr(head, "out_features", getattr(head, "out_channels", None))
        if not isinstance(classes, int):
            raise ValueError(
                f"GraSP cannot tell the number of classes from {type(head).__name__}; name the module that makes the "
                "logits (head=...), or give samples=None to take batches as they come"
            )
        return _balanced(probe.batches(), max(classes, 2), label, self.samples, self.batches)


def _balanced(batches: Iterator[Any], classes: int, head: str, samples: int, parts: int) -> list[Any]:
    """The first ``samples`` of each class, in ``parts`` that hold all classes alike.

    Raises:
        ValueError: if a class is short, or batches are no pairs of inputs and class numbers.
    """
    found: dict[int, list[Tensor]] = {label: [] for label in range(classes)}
    kind: type = tuple
    for batch in batches:
        if not _is_labelled(batch):
            raise ValueError(
                "GraSP picks samples by class, so batches must be pairs (inputs, class numbers) of tensors; got "
                f"{type(batch).__name__}; give samples=None to take batches as they come"
            )
        kind = type(batch)
        for x, label in zip(batch[0], batch[1].tolist(), strict=True):
            if label in found and len(found[label]) < samples:
                found[label].append(x)
        if all(len(xs) == samples for xs in found.values()):
            break
    if short := {label: len(xs) for label, xs in found.items() if len(xs) < samples}:
        raise ValueError(
            f"GraSP wants {samples} samples of each of {classes} classes, as many as {head!r} has outputs; the loader "
            f"has fewer of these: {short}; give a smaller samples=, the module that makes the logits as head=, or "
            "samples=None to take batches as they come"
        )
    labels = torch.arange(classes, device=found[0][0].device)
    chunks = []
    for part in range(parts):
        rows = [range(part, samples, parts)] * classes
        x = torch.stack([found[label][i] for label, own in enumerate(rows) for i in own])
        chunks.append(kind((x, labels.repeat_interleave(len(rows[0])))))
    return chunks


def _is_labelled(batch: Any) -> bool:
    if type(batch) not in (tuple, list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        return False
    return batch[1].ndim == 1 and not batch[1].is_floating_point() and len(batch[0]) == len(batch[1])


def _has_weights(module: nn.Module) -> bool:
    """Whether it is a layer that logits could come from."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag | nn.LayerNorm):
        return False
    return any(weight is not None and weight.ndim >= 2 for weight in module._parameters.values())


@contextmanager
def _calls(modules: Mapping[str, nn.Module], head: str) -> Iterator[list[str]]:
    """The names of layers and of the head, as forward passes call them."""
    found: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            found.append(name)

        return note

    watched = {name: module for name, module in modules.items() if name == head or _has_weights(module)}
    handles = [module.register_forward_hook(noting(name)) for name, module in watched.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _softened(head: nn.Module, temperature: float) -> Iterator[None]:
    """Logits divided by the temperature."""

    def soften(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(f"GraSP: the output of {type(module).__name__} is no tensor of logits; give another head=")
        return output / temperature

    handle = head.register_forward_hook(soften)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Without the kernels whose gradients have none: fused attention, cuDNN's recurrent layers."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
