"""What a criterion asks for is gathered, in any loop, and becomes scores."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.activations import InputMoments
from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.calls import tensors_in
from lightning_sparse.channels.criterion import Criterion
from lightning_sparse.channels.parts import Layout, Part, Slot, layout
from lightning_sparse.channels.runs import differentiable, each
from lightning_sparse.core.probe import Loss, eval_mode, untouched_randomness
from lightning_sparse.core.sharded import is_distributed

_Gradients = Mapping[str, Tensor]


class Collector:
    """Gathers what a criterion asks for while a model trains or runs, and scores its channels.

    - ``asks = "nothing"``: call :meth:`scores` at any time.
    - ``"activations"``: the model runs between :meth:`open` and :meth:`close` (or in a ``with``).
    - ``"gradients"``: :meth:`observe` before optimizer steps, when gradients are accumulated, averaged and unscaled. A
      sum for each channel is kept, never a copy of a gradient. Batches with a gradient that is not finite do not count.
    - ``"inputs"``: :meth:`look` runs the model and takes gradients of its output.

    Across processes of ``torch.distributed`` scores are averaged, so all must ask for them. A collector is of the
    shapes the model had when it was made: make another one after channels are cut.

    Args:
        model: any module.
        graph: of this model.
        criterion: what scores.

    Attributes:
        unseen: after :meth:`scores`: why an axis has none, by its name.

    Raises:
        ValueError: if the graph is not of this model as it is now.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom, Graph, Place
        >>> from lightning_sparse.channels.criteria import Taylor
        >>> model, index = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), torch.arange(2)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> graph = Graph((atom,), {}, {}, {}, {"0.weight": (2, 1), "1.weight": (1, 2)})
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([[1.0, 2.0]]))
        >>> collector = Collector(model, graph, Taylor())
        >>> model[1](torch.tensor([[1.0, 3.0]])).sum().backward()
        >>> collector.observe()  # w * g is 1 * 1 and 2 * 3
        >>> collector.scores()
        {'0': tensor([ 1., 36.])}
    """

    def __init__(self, model: nn.Module, graph: Graph, criterion: Criterion) -> None:
        self.model, self.criterion = model, criterion
        self.unseen: dict[str, str] = {}
        self._layout: Layout = layout(model, graph)
        self._moments = InputMoments(self._layout)
        self._sums: dict[str, Tensor] = {}
        self._count: Tensor | None = None
        self._opened = False

    def open(self) -> None:
        """Begin to watch forward passes, for a criterion that asks for activations; nothing for others."""
        self._opened = True
        if self.criterion.asks == "activations":
            self._moments.open()

    def close(self) -> None:
        """Stop watching; what was gathered stays."""
        self._moments.close()

    def __enter__(self) -> "Collector":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def observe(self, gradients: _Gradients | None = None) -> None:
        """Add a batch's gradients, for a criterion that asks for them; nothing for others.

        Args:
            gradients: by the name of the parameter; None takes ``.grad``.
        """
        if self.criterion.asks == "gradients":
            self._add(gradients)

    def look(self, run: Callable[[], Any]) -> None:
        """Run the model and differentiate its output, for a criterion that asks for inputs; nothing for others.

        In evaluation mode; modes, gradients and random states are as before afterwards.

        Args:
            run: calls the model and returns what it puts out.

        Raises:
            ValueError: if nothing that comes out depends on a parameter.
        """
        weights = self.weights()
        if self.criterion.asks != "inputs" or not weights:
            return
        with eval_mode(self.model), differentiable(weights.values()), untouched_randomness(), torch.enable_grad():
            outputs = [x for x in tensors_in(run()) if x.requires_grad]
            if not outputs:
                raise ValueError("what the model puts out does not depend on its weights, so nothing can be scored")
            generator = torch.Generator().manual_seed(0)
            for left in reversed(range(self.criterion.projections)):
                signs = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in outputs]
                found = torch.autograd.grad(
                    outputs, list(weights.values()), signs, retain_graph=left > 0, allow_unused=True
                )
                named = zip(weights, found, strict=True)
                with torch.no_grad():
                    self._add({name: gradient for name, gradient in named if gradient is not None})

    def scores(self) -> dict[str, Tensor]:
        """Scores by axis: on the CPU, real, [channels]. Axes that the criterion cannot see are missing.

        Raises:
            ValueError: if nothing was gathered of what the criterion asks for, or it returns what is no score.
        """
        if self.criterion.asks in ("gradients", "inputs") and self.weights():
            found = self._averaged()
        else:
            if self.criterion.asks == "activations" and not self._opened:
                raise ValueError(f"{self.criterion!r} saw no batch; run the model between open() and close()")
            self._moments.agree()
            with torch.no_grad():
                found = self._joined(None)
        self.unseen = {name: self.criterion.blind() for name in self._layout if name not in found}
        return {name: value.detach().cpu() for name, value in found.items()}

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters of all axes, by name."""
        slots = [slot for slots in self._layout.values() for slot in slots]
        return {slot.place.name: slot.tensor for slot in slots if isinstance(slot.tensor, nn.Parameter)}

    def _add(self, gradients: _Gradients | None) -> None:
        found = self._joined(_grad if gradients is None else lambda slot: gradients.get(slot.place.name))
        if not found:
            return
        device = next(iter(found.values())).device
        fine = torch.stack([value.isfinite().all().to(device) for value in found.values()]).all()
        self._count = fine.float() if self._count is None else self._count + fine
        for name, value in found.items():
            counted = torch.where(fine.to(value.device), value, 0)  # without a word to the CPU
            self._sums[name] = self._sums[name] + counted if name in self._sums else counted

    def _averaged(self) -> dict[str, Tensor]:
        count = torch.zeros(()) if self._count is None else self._count.clone()
        sums = {name: value.clone() for name, value in self._sums.items()}
        if is_distributed():
            for value in [count, *sums.values()]:
                torch.distributed.all_reduce(value)
        if not count:
            way = "observe()" if self.criterion.asks == "gradients" else "look()"
            raise ValueError(f"{self.criterion!r} saw no finite gradient; call {way} with some before scores()")
        return {name: value / count.to(value.device) for name, value in sums.items()}

    def _joined(self, gradient: Callable[[Slot], Tensor | None] | None) -> dict[str, Tensor]:
        """One score a channel, from what there is now."""
        found = {}
        for name, slots in self._layout.items():
            parts, scores = [], []
            for slot in slots:
                part = slot.part(gradient(slot) if gradient else None, self._moments.at(slot))
                if (score := self.criterion.score(part)) is not None:
                    parts.append(part)
                    scores.append(self._flat(score, part))
            if parts:
                found[name] = self.criterion.join(parts, torch.stack([s.to(scores[0]) for s in scores]))
        return found

    def _flat(self, score: Tensor, part: Part) -> Tensor:
        if not isinstance(score, Tensor) or score.ndim == 0 or len(score) != len(part.rows):
            shape = tuple(score.shape) if isinstance(score, Tensor) else score
            raise ValueError(
                f"{self.criterion!r} gave {shape} for {part.name}, not a score for {len(part.rows)} channels"
            )
        wide = torch.promote_types(score.dtype, torch.float32)
        rows = score.to(wide).flatten(1) if score.ndim > 1 else score.to(wide)[:, None]
        return rows.amax(1) if self.criterion.combine == "max" else rows.mean(1)


def _grad(slot: Slot) -> Tensor | None:
    return slot.tensor.grad


def gather(
    collector: Collector, run: Callable[[], Any], batches: Iterable[Any] | None = None, loss: Loss | None = None
) -> None:
    """Run a model, in evaluation mode, so that a collector has what its criterion asks for.

    Args:
        collector: of the model.
        run: calls the model; serves where there are no batches.
        batches: to look at, all of them.
        loss: of the model and a batch; with a criterion that asks for gradients, a scalar to differentiate.
    """
    model, asks = collector.model, collector.criterion.asks
    if asks == "inputs":
        collector.look(run)
    elif asks == "activations":
        with eval_mode(model), untouched_randomness(), torch.no_grad(), collector:
            for _ in each(model, run, batches, loss):
                pass
    elif asks == "gradients" and (weights := collector.weights()):
        with eval_mode(model), differentiable(weights.values()), untouched_randomness(), torch.enable_grad():
            for value in each(model, run, batches, loss):
                _check_loss(value)
                found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                collector.observe({n: g for n, g in zip(weights, found, strict=True) if g is not None})


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or not loss.requires_grad or loss.numel() != 1:
        raise ValueError(f"the loss must be a scalar tensor that can be differentiated, got {type(loss).__name__}")
